"""One model held by two processes, under every drafter and all options of requests: the tokens of
one process.

Each test starts two processes once, for all that it asks of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.model.heads.files import save_head
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from tests import rank_drafts
from tests.architectures import config, write_architecture
from tests.folders import write_folder
from tests.ranks import launch

VOCABULARY, CONTEXT = 272, 2048
KINDS = ["head", "lookahead", "self", "ngram+head"]


def write_head(folder: Path) -> Path:
    mx.random.seed(5)
    save_head(DraftHead(HeadConfig(32, 48, 4, 2, 8, VOCABULARY)), folder)
    return folder


def both(options: dict[str, Any], shard: str, count: int = 2) -> tuple[Any, Any]:
    """What several processes say, and what one says: of rows without drafts, of the mixed batch
    drafted for alike."""
    asked = json.dumps({**options, "shard": shard})
    first, *others = launch(count, "-m", "tests.rank_drafts", asked).wait()
    assert first[0] == 0, (first[2], others)
    assert [(code, out, err) for code, out, err in others] == [(0, "", "")] * (count - 1)
    return json.loads(first[1]), rank_drafts.run({**options, "kinds": ["off"]})


def check_rows(kind: str, own: dict[str, Any], lone: dict[str, Any]) -> None:
    """One of them was cancelled, and has said as much as there was time for."""
    assert own["reasons"] == ["length", "length", "cancelled", "length", "length"], kind
    for place, (text, alone) in enumerate(zip(own["tokens"], lone["tokens"], strict=True)):
        said = min(len(text), len(alone)) if place == 2 else len(alone)
        assert text[:said] == alone[:said], (kind, place)
    for name in kind.split("+"):
        drafted, accepted = own["drafters"][name]
        assert drafted > accepted > 0, (kind, own["drafters"])


def check_mixed(own: dict[str, Any], lone: dict[str, Any], *drafters: str) -> None:
    for name in ("texts", "tokens", "reasons"):
        assert own[name] == lone[name]
    assert json.loads(own["texts"][2]).keys() == {"colour", "count"}
    assert own["texts"][3] in ("yes", "no", "perhaps")
    scored = [score for row in own["scores"] for score in row.get("logprobs", [])]
    assert len(scored) == len(own["tokens"][1]) + len(own["tokens"][7])
    assert own["scores"][7]["prompt_logprobs"]
    assert flat(own["scores"]) == pytest.approx(flat(lone["scores"]), abs=1e-3)
    assert own["reused"] == lone["reused"] > 0
    for name in drafters:
        drafted, accepted = own["drafters"][name]
        assert drafted >= accepted > 0, (name, own["drafters"])


def flat(scores: Any) -> list[float]:
    """All numbers of them, ids of tokens too."""
    if isinstance(scores, dict):
        return [number for value in scores.values() for number in flat(value)]
    if isinstance(scores, list):
        return [number for value in scores for number in flat(value)]
    return [float(scores)] if isinstance(scores, int | float) else []


@pytest.mark.slow
def test_every_drafter_and_option_on_matrices_in_parts(tmp_path: Path) -> None:
    """Of a model with a ring; heads are divided, and what it says of itself is whole."""
    model = write_folder(
        tmp_path / "model",
        dtype=mx.float32,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        max_position_embeddings=CONTEXT,
    )
    options = {"model": str(model), "head": str(write_head(tmp_path / "head"))}
    many, lone = both({**options, "kinds": KINDS, "mixed": "ngram+head"}, "tensor")
    for kind in KINDS:
        check_rows(kind, many["rows"][kind], lone["rows"]["off"])
    check_mixed(many["mixed"], lone["mixed"], "forced", "head")


@pytest.mark.slow
def test_every_drafter_and_option_on_layers_in_parts(tmp_path: Path) -> None:
    """All ranks have what the last layer gave, so that heads draft; those in the middle none."""
    model = write_folder(
        tmp_path / "model",
        dtype=mx.float32,
        family="qwen2",
        num_hidden_layers=4,
        max_position_embeddings=CONTEXT,
    )
    options = {"model": str(model), "head": str(write_head(tmp_path / "head"))}
    many, lone = both({**options, "kinds": KINDS, "mixed": "ngram+head"}, "pipeline")
    refused = [kind for kind in KINDS if "self" in kind]
    assert list(many["refused"]) == refused
    assert "each of 2 ranks has some only" in many["refused"]["self"]
    for kind in KINDS:
        if kind not in refused:
            check_rows(kind, many["rows"][kind], lone["rows"]["off"])
    check_mixed(many["mixed"], lone["mixed"], "forced", "head")


@pytest.mark.slow
def test_states_in_parts(tmp_path: Path) -> None:
    """And what a constraint forces, beside n-grams."""
    text = {**config("qwen3_5")["text_config"], "vocab_size": VOCABULARY}
    text["max_position_embeddings"] = CONTEXT
    del text["rotary_pct"], text["rope_theta"]  # which its class does not read
    model = write_architecture(tmp_path / "model", "qwen3_5", text_config=text)
    options = {"model": str(model), "kinds": ["ngram"], "mixed": "ngram"}
    many, lone = both(options, "tensor")
    check_rows("ngram", many["rows"]["ngram"], lone["rows"]["off"])
    check_mixed(many["mixed"], lone["mixed"], "forced")
