"""``mlx-spec models``: what is at hand, what layers keep, which pairs fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.model import at_hand, folders_here
from tests.architectures import write_architecture
from tests.folders import CONTEXT, write_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLX_SPEC_TEST_MODELS", str(tmp_path / "packaged"))
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["models", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    return {one["name"]: one for one in record["models"]} | {"": record}


def test_everything_at_hand_is_looked_at(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = write_folder(here / "large", hidden_size=64, intermediate_size=256)
    write_folder(here / "small", num_hidden_layers=1)
    write_architecture(here / "gemma", "gemma3_text")
    shutil.copytree(large, here / "broken")
    (here / "broken" / "tokenizer.json").write_text("{")
    (here / "bad.gguf").write_bytes(b"GGUF")
    found = listed(capsys)
    assert {"demo", "demo-draft", "smollm2-draft"} <= set(found)
    assert found["./large"]["found"]["context"] == CONTEXT
    assert found["./large"]["caches"] == "2 full"
    assert "window of" in found["./gemma"]["caches"]
    assert found["./broken"]["problem"]
    assert found["./bad.gguf"]["problem"]
    assert found[""]["to_fetch"][0]["name"] == "smollm2"
    # The same bytes are tokens in all of them.
    assert {"name": "./small", "share": 1.0} in found["./large"]["drafts"]
    assert not found["./small"]["drafts"]
    assert [one["name"] for one in found["demo"]["drafts"]] == ["demo-draft"]
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "./large" in shown
    assert "fetched on first use: smollm2" in shown


def plant_folders(here: Path) -> None:
    """Many that hold nothing, a model before them and one behind."""
    write_folder(here / "a-model", num_hidden_layers=1)
    for number in range(40):
        (here / f"b{number:02}" / "inner" / "deeper").mkdir(parents=True)
    write_folder(here / "z" / "model", num_hidden_layers=1)
    write_folder(here / "b00" / "inner" / "deeper" / "model", num_hidden_layers=1)
    (here / ".hidden").mkdir()
    shutil.copytree(here / "a-model", here / ".hidden" / "model")


def test_among_many_folders_it_ends_and_says_what_it_left_out(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_folders(here)
    found = listed(capsys)
    assert {"./a-model", "./z/model"} <= set(found)
    assert not any("deeper" in name or "hidden" in name for name in found)
    monkeypatch.setattr(folders_here, "MOST", 60)
    short = listed(capsys)
    assert "./a-model" in short
    assert "./z/model" not in short
    # 43 with the directory itself, and of those within 40 and the model's 17.
    assert "(24 of them left out)" in short[""]["searched"][0]
    assert main(["models", "--json", "--all"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["models"]]
    assert "./z/model" in names


def test_models_that_there_is_no_time_for_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_folders(here)
    monkeypatch.setattr(at_hand, "SECONDS", -1.0)
    found = listed(capsys)
    assert set(found) == {""}
    assert found[""]["left_out"][:4] == ["demo", "demo-draft", "smollm2-draft", "./a-model"]
    assert main(["models"]) == 0
    assert "not looked at, for time (--all does): 5 models: demo, demo-draft," in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_search_without_bounds_shows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: nobody looks at the clock; or goes deeper than is useful."""
    plant_folders(here)
    monkeypatch.setattr(folders_here, "SECONDS", -1.0)
    assert folders_here.FoldersHere().left_out == 42
    assert folders_here.FoldersHere().folders == []
    monkeypatch.setattr(folders_here, "DEEP", 4)
    monkeypatch.setattr(folders_here, "SECONDS", 60.0)
    deep = [str(path) for path in folders_here.FoldersHere().folders]
    assert "b00/inner/deeper/model" in deep
