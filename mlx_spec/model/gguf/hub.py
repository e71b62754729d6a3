"""A GGUF file of a hub repository, by its name or, as llama.cpp's users write it, by its kind.

``org/name/model-Q4_K_M.gguf`` and ``org/name:model-Q4_K_M.gguf`` name a file; ``org/name:Q4_K_M``
is the one file, or the one set of parts, that has the tag in its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mlx_spec.errors import ModelLoadError

_NAME = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
_FORMS = (
    re.compile(rf"(?P<repository>{_NAME})/(?P<wanted>[\w./-]+\.gguf)"),
    re.compile(rf"(?P<repository>{_NAME}):(?P<wanted>[\w./-]+)"),
)
_PART = re.compile(r"(?P<begin>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def parse_hub_file(text: str) -> tuple[str, str] | None:
    """Repository and file or tag of a name, None if it is no such name."""
    for form in _FORMS:
        if match := form.fullmatch(text):
            return match["repository"], match["wanted"]
    return None


def fetch_gguf(repository: str, wanted: str, revision: str | None = None) -> Path:
    """The file, downloaded with its other parts if it has some, or from the local cache.

    Args:
        repository: ``"org/name"``.
        wanted: a file of it, or a tag as ``"Q4_K_M"``.
        revision: branch, tag or commit.

    Returns:
        The file, or its first part.

    Raises:
        ModelLoadError: no file has the tag, or several have.
    """
    from huggingface_hub import hf_hub_download

    name = wanted
    if not wanted.endswith(".gguf"):
        name = choose(_listed(repository, revision), wanted, repository)
    paths = [hf_hub_download(repository, part, revision=revision) for part in parts_of(name)]
    return Path(paths[0])


def choose(files: Iterable[str], tag: str, repository: str) -> str:
    """The file of a repository that has a tag in its name, of several parts the first.

    Raises:
        ModelLoadError: none has, or several have.
    """
    models = sorted({parts_of(name)[0] for name in files if name.endswith(".gguf")})
    models = [name for name in models if "mmproj" not in name.lower()]  # eyes, not a model
    pattern = re.compile(rf"(?:^|[-._/]){re.escape(tag)}(?=[-._/]|$)", re.IGNORECASE)
    found = [name for name in models if pattern.search(name.removesuffix(".gguf"))]
    if len(found) == 1:
        return found[0]
    what = "several files" if found else "no GGUF file"
    raise ModelLoadError(
        f"the hub's {repository} has {what} with {tag!r} in the name; there are "
        f"{', '.join(found or models) or 'none at all'}"
    )


def parts_of(name: str) -> list[str]:
    """All files of a model in several, by the name of any; else the name alone."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    count = int(part["count"])
    return [f"{part['begin']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _listed(repository: str, revision: str | None) -> list[str]:
    """The files of a repository; without the hub those that were downloaded before."""
    from huggingface_hub import errors, list_repo_files, snapshot_download

    try:
        return list(list_repo_files(repository, revision=revision))
    except errors.HfHubHTTPError:
        raise
    except Exception:  # no network: the types are those of whatever carries the hub's requests
        folder = snapshot_download(repository, revision=revision, local_files_only=True)
        return [str(path.relative_to(folder)) for path in Path(folder).rglob("*.gguf")]
