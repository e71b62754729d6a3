"""``doctor``: where it looks for models, and what it says of one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cli.main import main
from mlx_spec.model.inspection import inspect_model
from mlx_spec.model.packaged import PACKAGED
from mlx_spec.model.support import Support
from tests.architectures import write_architecture
from tests.folders import CONTEXT, byte_vocabulary, write_folder


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(["doctor", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


def test_it_says_where_it_looked_and_finds_folders_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    monkeypatch.setenv("MLX_SPEC_TEST_MODELS", str(packaged))
    write_folder(tmp_path / "models" / "tiny")
    write_folder(tmp_path / "other")
    record = as_json(capsys)
    names = [model["name"] for model in record["models"]]
    assert names[3:] == ["./models/tiny", "./other"]
    assert main(["doctor"]) == 0
    assert "fetched on first use: smollm2" in capsys.readouterr().out
    (packaged / PACKAGED["smollm2"].file).write_bytes(b"GGUF")  # it was
    assert "smollm2" in [model["name"] for model in as_json(capsys)["models"]]
    assert record["searched"] == [
        f"folders in {tmp_path}",
        f"the Hugging Face cache {tmp_path / 'cache'} (not there)",
    ]
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "looked in" in shown
    assert "fetched on first use" not in shown


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("llama", "exact", ""),
        ("deepseek_v3", "exact", ""),
        ("gpt_bigcode", "exact", ""),
        ("mamba", "exact", ""),
        ("deepseek_v41", "refused", "2 of 2 layers .* cannot be rolled back"),
    ],
)
def test_it_says_what_to_expect_of_a_model(
    name: str, verdict: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_architecture(tmp_path / "model", name)
    code = int(verdict == "refused")
    (facts,) = as_json(capsys, "--model", str(folder), code=code)["models"]
    assert (facts["model_type"], facts["verdict"], facts["vocabulary"]) == (name, verdict, 257)
    assert main(["doctor", "--model", str(folder)]) == code
    shown = " ".join(capsys.readouterr().out.split())
    assert f"verdict {verdict}: " in shown
    if words:
        assert re.search(words, facts["reason"])
        assert re.search(words, shown)


def test_it_says_what_a_pair_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = write_folder(tmp_path / "target")
    fewer = {token: number for token, number in byte_vocabulary().items() if number < 250}
    draft = write_folder(tmp_path / "draft", fewer)
    record = as_json(capsys, "--model", str(target), "--draft-model", str(draft))
    assert record["pairing"]["share"] == pytest.approx(251 / 257)
    assert main(["doctor", "--model", str(target), "--draft-model", str(draft)]) == 0
    # <|end|> has another id there.
    said = " ".join(capsys.readouterr().out.split())
    assert "the draft has 251 of the target's 257 tokens" in said
    assert main(["generate", "--model", str(target), "--draft-model", str(draft), "-p", "x"]) == 0
    assert "mlx-spec: the draft has 251 of the target's 257 tokens" in capsys.readouterr().err


def test_facts_need_no_weights(tmp_path: Path) -> None:
    facts = inspect_model(write_folder(tmp_path / "model"))
    assert (facts.layers, facts.context, facts.bits, facts.chat) == (2, CONTEXT, None, False)
    assert facts.bytes == facts.parameters * (4 if mx.default_device() == mx.cpu else 2)


def test_what_a_class_passes_by_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "model", final_logit_softcapping=30.0)
    (facts,) = as_json(capsys, "--model", str(folder))["models"]
    assert facts["verdict"] == "exact"
    assert "final_logit_softcapping 30.0, which mlx-lm's llama does not read" in facts["unread"]
    assert main(["doctor", "--model", str(folder)]) == 0
    assert "final_logit_softcapping 30.0" in " ".join(capsys.readouterr().out.split())


def test_it_says_that_near_ties_may_fall_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    support = Support("near-ties", "Attention computes one new token in another way")
    monkeypatch.setattr("mlx_spec.model.inspection.examine", lambda model: support)
    assert main(["doctor", "--model", str(write_folder(tmp_path / "model"))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "verdict near-ties: drafts may swap tokens" in shown
    assert "why Attention computes one new token in another way" in shown


def test_on_metal_it_tells_of_mlxs_variables_and_sets_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLX_MAX_MB_PER_BUFFER", raising=False)
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "50")
    before = dict(os.environ)
    assert as_json(capsys)["settings"] == []
    monkeypatch.setattr("mlx_spec.platform._backend", lambda mx: "metal")
    told = as_json(capsys)["settings"]
    assert [text.partition(" ")[0] for text in told[:3]] == [
        "MLX_MAX_OPS_PER_BUFFER",
        "MLX_MAX_MB_PER_BUFFER",
        "MLX_METAL_FAST_SYNCH",
    ]
    assert told[0].endswith("set to 50")
    assert told[1].endswith("not set; try MLX_MAX_MB_PER_BUFFER=512")
    assert main(["doctor"]) == 0
    assert "MLX_METAL_FAST_SYNCH=1" in capsys.readouterr().out
    assert dict(os.environ) == before
