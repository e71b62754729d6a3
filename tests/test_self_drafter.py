"""A target that drafts with some of its own layers: exact over every kind of cache and pass.

Batches of three rows with joins, leaves, a preemption and beginnings that are used again; steps are
built ahead where the model's form allows.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters import self_layers
from mlx_spec.decoding.drafters.self_layers import SelfDrafter
from mlx_spec.errors import InvalidRequest, UnsupportedModel
from mlx_spec.model.partial import layers_of, skipping_of
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.architecture_runs import Outcome, Plan, not_compiled, run
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.scenario import make_jobs, run_jobs, target, wrong_rows

Patch = pytest.MonkeyPatch
# Full attention, rings, states beside either, latent attention (tokens as rows), one row a call,
# and layers that give several things.
FAMILIES = [
    "llama",
    "gemma3_text",
    "gpt_oss",
    "qwen3_next",
    "falcon_h1",
    "deepseek_v3",
    "gpt_bigcode",
    "gemma4_text",
]


def ran(name: str, **plan: Any) -> Outcome:
    with not_compiled():
        return run(name, Plan(layers=(0,), **plan))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_target_that_drafts_for_itself_says_what_it_says_alone(name: str) -> None:
    outcome = ran(name, reusing=True, debug=name == "llama")
    assert outcome.wrong == []
    assert 0 < sum(outcome.accepted) < sum(outcome.drafted)
    assert outcome.reused > 0
    assert (outcome.ahead > 0) is not outcome.support.form.needs_host


def sampled(temperature: float | None = None) -> list[Any]:
    """Rows that sample by options of their own."""
    jobs = make_jobs("llama", True, 7)
    decoder = SpeculativeDecoder(
        target("llama"),
        speculation=SpeculationConfig(
            draft="self", draft_layers=(1,), draft_temperature=temperature
        ),
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=4),
    )
    rows = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, rows) == []
    return rows


def test_another_draft_temperature_changes_guesses_and_no_text() -> None:
    own, other = (sum(row.accepted for row in sampled(t)) for t in (None, 0.05))
    assert own > 0
    assert own != other


def test_the_target_s_slots_are_counted_once() -> None:
    speculation = SpeculationConfig(draft="self", draft_layers=(0,), num_draft_tokens=4)
    decoder = SpeculativeDecoder(target("llama"), speculation=speculation)
    assert isinstance(decoder.drafter, SelfDrafter)
    assert decoder.runners == (decoder.runner,)
    assert decoder.cost.nbytes(100) == decoder.runner.cost.nbytes(100)
    assert (decoder.runner.pool.slots, decoder.runner.pool.positions) == (0, 0)


@pytest.mark.parametrize("name", ["llama", "gemma4_text"])
def test_a_partial_copy_shares_all_and_runs_what_is_kept(name: str) -> None:
    """Its weights are the model's, which is left as it was."""
    runner = ModelRunner(build(name), 2)
    skipping, before = skipping_of(runner), layers_of(runner.model)
    copy = skipping.partial(runner.model, {0})
    kept = {0} | skipping.needed
    assert [a is b for a, b in zip(layers_of(copy), before, strict=True)] == [
        place in kept for place in range(len(before))
    ]
    assert layers_of(runner.model) == before
    assert type(copy) is type(runner.model)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"draft_layers names layer 2, the model has 2 \(0 to"):
        SelfDrafter(ModelRunner(target("llama"), 1), (0, 2))


class Hidden(nn.Module):
    """A model that calls other layers than it lists."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.layers, self.args, self.vocab_size = inner.layers, inner.args, inner.args.vocab_size
        self._inner = lambda: inner

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        logits: mx.array = self._inner()(tokens, cache=cache)
        return logits


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: make_model(num_hidden_layers=1), "has 1 layer, so that none can be skipped"),
        (lambda: Hidden(target("llama")), "does not call the `layers` that it lists"),
    ],
)
def test_what_cannot_be_skipped_is_said(model: Any, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        SelfDrafter(ModelRunner(model(), 1), (0,))


class AlwaysThatMany(FixedDraftLength):
    """Also where a row is about to end."""

    def choose(self, rows: Any) -> list[int]:
        return [self.length] * len(rows)


# Planted bugs.


def keys_left_in_the_target_s_place(patch: Patch) -> None:
    """Guesses are read one position too early: over what the target has written."""
    right = self_layers._rows

    def early(context: Any, token: mx.array, step: int) -> Rows:
        rows = right(context, token, step)
        return Rows(rows.tokens, mx.maximum(rows.starts - 1, 0), rows.limit)

    patch.setattr(self_layers, "_rows", early)


def states_not_restored(patch: Patch) -> None:
    """What guesses were folded into is what verification goes on from."""
    patch.setattr(KVCachePool, "folded", lambda self: [])


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("llama", keys_left_in_the_target_s_place),
        ("gemma3_text", keys_left_in_the_target_s_place),
        ("qwen3_next", states_not_restored),
        ("falcon_h1", states_not_restored),
    ],
)
def test_a_planted_bug_is_noticed(name: str, plant: Any, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert ran(name).wrong != []


def long_rows(drafted: int) -> list[list[int]]:
    """Two rows that go on past their ring, with as many guesses in every step."""
    decoder = SpeculativeDecoder(
        target("gemma3_text"),
        speculation=SpeculationConfig(draft="self", draft_layers=(0,)),
        policy=AlwaysThatMany(drafted),
        batching=BatchingConfig(batch_size=2),
    )
    rows = [Sequence([3 + i] * (40 + i), SamplingParams(max_tokens=24)) for i in range(2)]
    decoder.add(rows)
    while decoder.busy:
        decoder.step()
    return [row.tokens for row in rows]


def test_guesses_do_not_come_round_in_a_ring() -> None:
    """As many as may be are exact; more would be written over what a row still sees."""
    assert SelfDrafter.max_draft_tokens == 30
    assert long_rows(30) == long_rows(0) != long_rows(44)
