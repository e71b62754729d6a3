"""``mlx-spec models``: what is at hand, what layers keep, which pairs fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
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
