"""Parts of ``mlx-spec bench``: texts compared, drafts that are tried, bytes that a step reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_spec import generate
from mlx_spec.bench.arms import PLAIN, ArmRun, OurArm, choice_of, drafting_flags
from mlx_spec.bench.bandwidth import step_bytes
from mlx_spec.bench.comparing import differences, look_into
from mlx_spec.bench.contest import open_contest
from mlx_spec.bench.options import BenchOptions
from mlx_spec.config import CacheOptions
from mlx_spec.errors import InvalidRequest
from mlx_spec.model.loader import load
from mlx_spec.pipeline.backend import Models
from mlx_spec.pipeline.flags import Flags
from tests.bench_runs import with_token
from tests.folders import write_folder
from tests.models import make_model


def test_a_near_tie_is_told_from_a_fault(tmp_path: Path) -> None:
    """The target itself says how far apart the two tokens are."""
    target = load(write_folder(tmp_path / "model"))
    arm = OurArm(PLAIN, Flags(enable_speculative=False), target)
    prompts = [list(target[1].encode("abcabc")), list(target[1].encode("la la"))]
    plain = arm.run(prompts, 2, 4)
    assert differences(plain, plain, exact=True) == []
    made = generate(
        *target, prompts[1] + list(plain.token_ids[1][:2]), max_tokens=1, top_logprobs=5
    )
    assert made.logprobs is not None
    first, second, *_ = made.logprobs[0].top
    assert first.token == plain.token_ids[1][2]
    other = with_token(plain, 1, 2, second.token)
    (found,) = differences(other, plain, exact=True)
    assert found.gap is None
    assert not found.near_tie  # until that was looked into
    (found,) = look_into([found], other, plain, prompts, target)
    assert found.gap == pytest.approx(first.logprob - second.logprob, abs=1e-4)
    assert found.near_tie == (found.gap <= 0.1)
    unlikely = with_token(
        plain, 1, 2, (set(range(256)) - {t.token for t in made.logprobs[0].top}).pop()
    )
    (found,) = look_into(differences(unlikely, plain, True), unlikely, plain, prompts, target)
    assert found.gap is None


def test_only_texts_count_where_others_end_their_tokens_otherwise() -> None:
    ours = ArmRun({}, ("a",), ((1, 2),))
    theirs = ArmRun({}, ("a",), ((1,),))
    assert differences(theirs, ours, exact=False) == []
    assert [one.place for one in differences(theirs, ours, exact=True)] == [1]
    assert differences(ArmRun({}, ("?",), ((1, 2),)), ours, exact=False) == []
    other = ArmRun({}, ("b",), ((1, 3),))
    assert [one.place for one in differences(other, ours, exact=False)] == [1]


def names(flags: Flags, **options: Any) -> list[str]:
    return [choice_of(one).name for one in drafting_flags(BenchOptions(**options), flags)]


def test_which_drafts_are_tried() -> None:
    own = Flags(model="org/big")
    assert names(own) == ["ngram"]
    assert names(own, draft_model=("org/a", "org/b")) == ["a", "b", "ngram"]
    assert names(own, draft=("self", "ngram")) == ["self", "ngram"]
    both = {"draft_model": ("org/a",), "draft": ("ngram", "ngram+model")}
    assert names(own, **both) == ["ngram+model a", "ngram"]
    assert names(own, draft_model=("org/a",), draft=("self",)) == ["a", "self"]
    assert names(own, draft=("head",)) == ["head"]  # of the checkpoint itself
    assert names(Flags(model="smollm2")) == ["smollm2-draft", "ngram"]
    assert names(Flags(model="smollm2"), draft=("ngram",)) == ["ngram"]
    assert names(Flags()) == ["demo-draft", "ngram"]
    with pytest.raises(InvalidRequest, match="needs a --draft-model"):
        names(own, draft=("model",))


def test_bytes_of_a_step() -> None:
    """Weights once, keys and values of each row, of experts those that some row's token uses."""
    dense = step_bytes(make_model("llama"), CacheOptions())
    assert dense.experts == 0
    # Two layers, keys and values, two heads of 8 numbers, in float32.
    assert dense.step(3, 10) - dense.step(3, 9) == 3 * 2 * 2 * 2 * 8 * 4
    assert dense.step(1, 0) == dense.weights
    mixed = step_bytes(make_model("qwen3_moe"), CacheOptions())
    assert mixed.share == 0.5
    assert mixed.step(1, 0) == mixed.weights + mixed.experts / 2
    assert mixed.step(2, 0) == mixed.weights + mixed.experts * 0.75


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their paths, in tables and in what is recommended."""
    target = write_folder(tmp_path / "target")
    drafts = [str(write_folder(tmp_path / place / "same")) for place in ("a", "b")]
    options = BenchOptions(draft_model=(drafts[0], drafts[1]), draft=("model",))
    opened = open_contest(options, Flags(model=str(target)), None, Models())
    assert [one.name for one in opened.runners][2:] == ["model same", f"model {drafts[1]}"]
    for name, choice in opened.choices.items():
        assert choice.name == name
        if choice.drafts:
            assert opened.flags[name].draft_model in drafts
