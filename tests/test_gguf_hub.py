"""GGUF files of hub repositories: what a name means, and what is asked of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import load
from mlx_spec.errors import ModelLoadError
from mlx_spec.model.gguf.hub import choose, parse_hub_file, parts_of
from tests.gguf_files import write_gguf

FILES = [
    "README.md",
    "Tiny-1B-Q4_0.gguf",
    "Tiny-1B-Q4_K_M.gguf",
    "Tiny-1B-Q8_0-00001-of-00002.gguf",
    "Tiny-1B-Q8_0-00002-of-00002.gguf",
    "F16/tiny-1b.gguf",
    "mmproj-Tiny-1B-F16.gguf",
]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("org/name/a.gguf", ("org/name", "a.gguf")),
        ("org/name/sub/a-Q4_0.gguf", ("org/name", "sub/a-Q4_0.gguf")),
        ("org/name:a.gguf", ("org/name", "a.gguf")),
        ("org/name-GGUF:Q4_K_M", ("org/name-GGUF", "Q4_K_M")),
        ("org/name", None),
        ("name:Q4_K_M", None),
        ("./a.gguf", None),
        ("a.gguf", None),
    ],
)
def test_a_name_is_a_repository_and_a_file(text: str, wanted: tuple[str, str] | None) -> None:
    assert parse_hub_file(text) == wanted


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("Q4_0", "Tiny-1B-Q4_0.gguf"),
        ("q4_k_m", "Tiny-1B-Q4_K_M.gguf"),
        ("Q8_0", "Tiny-1B-Q8_0-00001-of-00002.gguf"),
        ("F16", "F16/tiny-1b.gguf"),
    ],
)
def test_a_tag_is_the_one_file_that_has_it(tag: str, wanted: str) -> None:
    assert choose(FILES, tag, "org/name") == wanted


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("Q2_K", r"has no GGUF file with 'Q2_K' in the name; there are F16/tiny-1b\.gguf, Tiny"),
        ("Q4", r"has several files with 'Q4' in the name; there are Tiny-1B-Q4_0\.gguf, Tiny"),
        ("1B", r"has several files with '1B' in the name; there are .*, Tiny-1B-Q4_K_M\.gguf, "),
    ],
)
def test_none_or_several_are_named(tag: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        choose(FILES, tag, "org/name")
    with pytest.raises(ModelLoadError, match="there are none at all"):
        choose(["README.md"], tag, "org/name")


def test_all_parts_are_fetched() -> None:
    assert parts_of("a-00002-of-00003.gguf") == [
        "a-00001-of-00003.gguf",
        "a-00002-of-00003.gguf",
        "a-00003-of-00003.gguf",
    ]
    assert parts_of("a.gguf") == ["a.gguf"]


@pytest.mark.parametrize("name", ["org/name/model-Q4_0.gguf", "org/name:Q4_0"])
def test_a_file_is_downloaded_and_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = write_gguf(tmp_path / "model-Q4_0.gguf")
    asked: list[Any] = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.list_repo_files", lambda name, revision: ["model-Q4_0.gguf", "x-Q8_0.gguf"]
    )
    model, _ = load(name, revision="main")
    assert asked == [("org/name", "model-Q4_0.gguf", "main")]
    prompt = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(prompt), wanted(prompt))


def test_a_tag_is_found_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model-Q4_0.gguf")

    def no_network(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.list_repo_files", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, file, **k: tmp_path / file)
    load("org/name:Q4_0")


def test_a_repository_of_gguf_files_wants_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_lm.utils.snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"name one, or its kind: org/name-GGUF:Q4_K_M"):
        load("org/name-GGUF")
