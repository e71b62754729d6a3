"""Draft models of any kind for targets of any kind: windows and states are caches like others.

A draft that is the target itself is right all the time, whatever its caches keep: a window that was
written over, or a state that guesses were folded into, shows as a guess that is refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import DraftContext
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.drafters.riding import MAX_RIDE, FoldedRiding, Riding
from mlx_spec.decoding.rules import LogitsRule, RuleContext
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.models import make_model
from tests.preemption import preempt
from tests.scenario import mlx_lm_greedy

# Window and full attention, short convolution and attention, Mamba 1, one position.
KINDS = ("gemma3_text", "lfm2", "mamba", "gpt_bigcode")


@cache
def model(name: str) -> Any:
    return make_model("llama") if name == "llama" else build(name)


@cache
def expected(name: str, index: int) -> tuple[int, ...]:
    """Texts that go far past a window of 16."""
    return tuple(mlx_lm_greedy(model(name), prompt(index), 24 + 2 * index))


def prompt(index: int) -> tuple[int, ...]:
    return tuple((7 * index + 3 * n + n * n) % 64 for n in range((1, 4, 9, 14, 30)[index]))


class InTurn(LogitsRule):
    """Changes nothing but the driver."""

    needs_host = True

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        return logits


def run(target: str, draft: str, policy: Any = None, **options: Any) -> list[Sequence]:
    """Five requests in three slots; one leaves half way and comes back, another leaves for good."""
    decoder = SpeculativeDecoder(
        model(target),
        drafter=ModelDrafter(ModelRunner(model(draft), 3)),
        policy=policy or RaggedPolicy(4),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, prefill_interleave=8),
        **options,
    )
    made = [
        Sequence(list(prompt(i)), SamplingParams(max_tokens=24 + 2 * i), index=i) for i in range(5)
    ]
    preempt(decoder, made)
    return made


def wrong(made: list[Sequence], target: str) -> list[int]:
    return [s.index for s in made if tuple(s.tokens) != expected(target, s.index)]


def refused(made: list[Sequence]) -> int:
    """Guesses that the target did not share; those past a row's end are not counted."""
    return sum(row.drafted - row.accepted for row in made)


@pytest.mark.parametrize(
    ("kind", "rules"), [*((kind, ()) for kind in KINDS), ("lfm2", (InTurn(),))]
)
def test_a_draft_that_is_the_target_is_always_right(kind: str, rules: Any) -> None:
    made = run(kind, kind, rules=rules)
    assert wrong(made, kind) == []
    assert sum(row.accepted for row in made) > 50
    assert refused(made) == 0


@pytest.mark.parametrize("kind", ["gemma3_text", "lfm2"])
def test_plain_steps_between_drafts_are_read_later(kind: str) -> None:
    """So many that a row must be read by the Feeder again, and so few that it must not."""
    made = run(kind, kind, CyclingPolicy([3, 0, 0, 2, *[0] * 10]))
    assert wrong(made, kind) == []
    assert sum(row.accepted for row in made) > 10
    assert refused(made) == 0


@pytest.mark.parametrize(
    ("target", "draft"),
    [("llama", "gemma3_text"), ("gemma3_text", "lfm2"), ("lfm2", "llama"), ("mamba", "lfm2")],
)
def test_any_kind_drafts_for_any_kind(target: str, draft: str) -> None:
    """Two models of random weights never agree: this is a draft that is refused all the time."""
    made = run(target, draft)
    assert wrong(made, target) == []
    assert sum(row.drafted for row in made) > 50


def test_a_state_that_guesses_were_folded_into_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCachePool, "folded", lambda self: [])
    made = run("lfm2", "lfm2")
    assert wrong(made, "lfm2") == []  # drafts cost speed, never output
    assert refused(made) > 10


def test_a_token_that_is_folded_in_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    look = FoldedRiding.look

    def one_less(self: FoldedRiding, rows: Any) -> None:
        unknown = [held is None for held in self.held]
        look(self, rows)
        self.held = [
            held - 1 if held is not None and new else held
            for held, new in zip(self.held, unknown, strict=True)
        ]

    monkeypatch.setattr(FoldedRiding, "look", one_less)
    made = run("lfm2", "lfm2")
    assert wrong(made, "lfm2") == []
    assert refused(made) > 10


@pytest.mark.parametrize("kind", ["gemma3_text", "lfm2"])
def test_rows_that_are_being_read_are_left_alone(kind: str) -> None:
    """What rides along for nothing is written nowhere: in a ring it would come round to what a long
    prompt has there already."""
    assert refused(run_beside_a_long_prompt(kind)) == 0


def test_a_ride_for_nothing_is_nobodys() -> None:
    """The second row is being read, the third waits to be."""
    lengths = mx.array([5, 60, 40], mx.int32)
    context = DraftContext((), mx.zeros((3, 64)), lengths, 5, 60, SamplingBatch.of([]), 64)
    ride = Riding([2, None, MAX_RIDE + 1]).first(context)
    assert (ride.width, ride.starts.tolist()) == (2, [3, 58, 38])
    assert ride.counts is not None
    assert ride.counts.tolist() == [2, 0, 0]
    assert Riding([2, 1, 3]).first(context).counts is None


def run_beside_a_long_prompt(kind: str) -> list[Sequence]:
    """The draft reads it in small pieces, while another row drafts."""
    decoder = SpeculativeDecoder(
        model(kind),
        drafter=ModelDrafter(ModelRunner(model(kind), 2), BatchingConfig(prefill_interleave=8)),
        policy=CyclingPolicy([3]),
        batching=BatchingConfig(batch_size=2, prefill_interleave=128),
    )
    texts = [[3, 4, 5], [(5 * n + n * n) % 64 for n in range(90)]]
    made = [Sequence(text, SamplingParams(max_tokens=80 - 60 * i)) for i, text in enumerate(texts)]
    decoder.add(made[:1])
    for _ in range(3):
        decoder.step()
    decoder.add(made[1:])
    while decoder.busy:
        decoder.step()
    assert made[1].accepted > 0
    return made
