"""Models inside Python packages: fetched, put together, checked, kept; and every way to fail."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_spec.errors import ModelLoadError
from mlx_spec.model import packaged
from mlx_spec.model.packaged import PACKAGED, PackagedModel, packaged_path
from mlx_spec.model.source import locate

PIECES = (b"first half, ", b"second half")
MODEL = PackagedModel(
    title="Half and Half",
    file="whole.gguf",
    parts=tuple((f"mlx-spec-half{n}==1.0", f"half{n}/part") for n in range(2)),
    sha256=hashlib.sha256(b"".join(PIECES)).hexdigest(),
    size=23,
    licence="MIT",
)


def write_wheel(folder: Path, number: int, data: bytes) -> Path:
    """A wheel of one file, good enough for pip."""
    name = f"mlx_spec_half{number}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"half{number}/part", data)
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip can reach: a folder with both wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, data in enumerate(PIECES):
        write_wheel(folder, number, data)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv(packaged.FOLDER_VARIABLE, str(tmp_path / "kept"))
    return folder


@pytest.fixture
def quick_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without the second that pip itself takes: a python that copies what is there."""
    script = index / "python"
    find = 'while [ "$1" != --dest ]; do shift; done; dest="$2"'
    copy = 'for n in 0 1; do w="$PIP_FIND_LINKS/mlx_spec_half$n-1.0-py3-none-any.whl"'
    fail = '[ -f "$w" ] || { echo "ERROR: no mlx-spec-half$n" >&2; exit 1; }'
    script.write_text(f'#!/bin/sh\n{find}\n{copy}; {fail}; cp "$w" "$dest"; done\n')
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    return index


def test_a_file_in_pieces_is_put_together_once(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packaged_path(MODEL)
    assert path.read_bytes() == b"".join(PIECES)
    assert "Half and Half" in (said := capsys.readouterr().err)
    assert "licence: MIT" in said
    assert [one.name for one in (tmp_path / "kept").iterdir()] == ["whole.gguf"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert packaged_path(MODEL) == path  # kept; nothing is asked
    assert capsys.readouterr().err == ""


def other_bytes(index: Path) -> None:
    write_wheel(index, 1, b"something else")


def other_member(index: Path) -> None:
    path = write_wheel(index, 2, PIECES[1])
    path.rename(index / "mlx_spec_half1-1.0-py3-none-any.whl")


def gone(index: Path) -> None:
    (index / "mlx_spec_half1-1.0-py3-none-any.whl").unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (other_bytes, "another file, and was thrown away"),
        (gone, r"give mlx-spec-half0==1.0, mlx-spec-half1==1.0 \(no network\?\); pip says: ERROR"),
        (other_member, "mlx-spec-half1==1.0"),
    ],
)
def test_what_does_not_come_right_is_refused_and_not_kept(
    harm: Callable[[Path], None], words: str, quick_index: Path, tmp_path: Path
) -> None:
    harm(quick_index)
    with pytest.raises(ModelLoadError, match=words) as caught:
        packaged_path(MODEL)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "kept").iterdir()) == []


def test_without_pip_it_says_so(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = index / "python"
    script.write_text("#!/bin/sh\necho /x/python: No module named pip >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(ModelLoadError, match="python -m ensurepip"):
        packaged_path(MODEL)


def test_a_cache_that_cannot_be_written_is_one_line(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(packaged.FOLDER_VARIABLE, str(tmp_path / "file" / "models"))
    with pytest.raises(ModelLoadError, match="cannot be kept in"):
        packaged_path(MODEL)


def test_a_name_of_the_catalog_is_its_file(
    quick_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "smollm2", replace(MODEL, file="other.gguf"))
    assert locate("smollm2").read_bytes() == b"".join(PIECES)


def test_a_file_of_a_hub_repository_is_fetched_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked: list[object] = []

    def download(*arguments: object, revision: str | None) -> str:
        asked.append((*arguments, revision))
        return str(tmp_path / "model.gguf")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert locate("org/name/sub/model.gguf", "v1") == tmp_path / "model.gguf"
    assert asked == [("org/name", "sub/model.gguf", "v1")]
    for error, words in (
        (LocalEntryNotFoundError("x"), "the hub cannot be reached"),
        (EntryNotFoundError("x"), "the hub's org/name has no file model.gguf"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        with pytest.raises(ModelLoadError, match=words):
            locate("org/name/model.gguf")
