"""Which models are at hand, and which one a name means that is not quite one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_spec.model import source
from mlx_spec.model.catalog import find_models, nearest
from tests.folders import write_folder


def test_find_models_lists_the_pair_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import scan_cache_dir

    commit = "0" * 40
    repository = tmp_path / "models--org--tiny"
    write_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan_cache_dir(tmp_path))
    found = {model.name: model for model in find_models()}
    assert list(found) == ["demo", "demo-draft", "smollm2-draft", "org/tiny"]
    assert found["org/tiny"].model_type == "llama"
    assert found["org/tiny"].size > 0


def test_find_models_does_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import CacheNotFound

    def nothing() -> None:
        raise CacheNotFound("none", cache_dir="/nothing")

    monkeypatch.setattr("huggingface_hub.scan_cache_dir", nothing)
    assert [model.name for model in find_models()] == ["demo", "demo-draft", "smollm2-draft"]


def test_a_name_that_is_nearly_one_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "Tiny-8B-4bit")
    assert nearest("tiny-8b-4bits") == "./Tiny-8B-4bit"
    assert nearest("SmolLM2-135M-Instruct") == "smollm2"
    assert nearest("demo_draft") == "demo-draft"
    assert nearest("something else") is None


@pytest.mark.parametrize(
    "page",
    [
        "https://huggingface.co/org/name",
        "https://hf.co/org/name/",
        "http://huggingface.co/org/name/tree/main",
    ],
)
def test_a_page_of_the_hub_is_its_repository(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(source, "_fetch", lambda *names: asked.append(names) or Path("there"))
    assert source.locate(page) == Path("there")
    assert asked == [("org/name", None)]
