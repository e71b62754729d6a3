"""A newcomer's long prompt is fed between steps, to the target and to the drafter.

What one step adds for it is counted in tokens: that bounds the pause in the running rows' streams.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.draft_length import FixedDraftLength
from mlx_spec.decoding.drafters.base import DraftContext
from mlx_spec.decoding.drafters.model import MAX_RIDE, ModelDrafter
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY
from tests.scenario import plain_alone, target

INTERLEAVE, STEP_SIZE, ROWS = 24, 64, 4


@dataclass
class Fed:
    """Tokens fed: to the target by pass, to the draft by step (one may be built ahead)."""

    target: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)

    def watch(self, runner: ModelRunner) -> None:
        feed = runner.feed

        def counting(rows: Rows, step_size: int, *, wait: bool) -> None:
            self.target.append(rows.tokens.size)
            feed(rows, step_size, wait=wait)

        runner.feed = counting  # type: ignore[method-assign]


class CountingDrafter(ModelDrafter):
    """Notes what it reads before each step."""

    def __init__(self, fed: Fed, *args: Any) -> None:
        super().__init__(*args)
        self._fed = fed

    def catch_up(self, context: DraftContext) -> int:
        self._fed.draft.append(super().catch_up(context))
        return self._fed.draft[-1]


def make_decoder(fed: Fed, length: int = 3, rows: int = ROWS) -> SpeculativeDecoder:
    """The target drafts for itself: every guess is right if its cache is."""
    runner = ModelRunner(target("llama"), rows)
    drafter = CountingDrafter(fed, runner, STEP_SIZE, INTERLEAVE)
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=drafter,
        policy=FixedDraftLength(length),
        batching=BatchingConfig(
            batch_size=rows, prefill_step_size=STEP_SIZE, prefill_interleave=INTERLEAVE
        ),
    )
    fed.watch(decoder.runner)
    return decoder


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def right(sequence: Sequence) -> bool:
    alone = plain_alone(target("llama"), tuple(sequence.prompt), sequence.sampling)
    return sequence.tokens == alone


def test_a_long_prompt_never_takes_more_than_its_share_of_a_step() -> None:
    fed = Fed()
    decoder = make_decoder(fed)
    running = [Sequence(prompt(5 + i, i), SamplingParams(max_tokens=300)) for i in range(2)]
    decoder.add(running)
    for _ in range(3):
        decoder.step()
    fed.draft.clear()
    newcomers = [Sequence(prompt(n, n), SamplingParams(max_tokens=40)) for n in (200, 230)]
    decoder.add(newcomers)
    most = 0
    while not all(sequence.finish_reason for sequence in newcomers):
        alive = [len(sequence.tokens) for sequence in running]
        fed.target.clear()
        decoder.step()
        assert all(len(s.tokens) > n for s, n in zip(running, alive, strict=True)), "a pause"
        most = max(most, sum(fed.target))
    assert most == INTERLEAVE
    assert max(fed.draft) == INTERLEAVE
    assert sum(fed.draft) >= 200 + 230 - 2 * MAX_RIDE
    while decoder.busy:
        decoder.step()
    assert all(right(sequence) for sequence in [*running, *newcomers])


def test_many_newcomers_at_once_do_not_add_up() -> None:
    """Groups of rows fed one after the other share the one chunk; stops a token a row each."""
    fed = Fed()
    decoder = make_decoder(fed, rows=32)
    running = Sequence(prompt(5, 0), SamplingParams(max_tokens=200))
    decoder.add([running])
    decoder.step()
    # Neighbours of similar length are fed together: 20 tokens, which leaves 4 for 8 rows.
    lengths = [2] * 20 + [60] * 8
    newcomers = [Sequence(prompt(n, n), SamplingParams(max_tokens=5)) for n in lengths]
    decoder.add(newcomers)
    while not all(sequence.finish_reason for sequence in newcomers):
        fed.target.clear()
        decoder.step()
        assert sum(fed.target) <= INTERLEAVE
    assert all(right(sequence) for sequence in newcomers[-3:])


@pytest.mark.parametrize("lengths", [(90, 7, 60, 8), (30, 31, 120, 33), (5, 100, 6, 100)])
def test_a_text_read_bit_by_bit_is_read_right(lengths: tuple[int, ...]) -> None:
    """Once a row is covered, all its drafts are accepted: its cache holds what it should."""
    decoder = make_decoder(Fed())
    sequences: list[Any] = [
        Sequence(prompt(n, i), SamplingParams(max_tokens=20 + i)) for i, n in enumerate(lengths)
    ]
    decoder.add(sequences[:2])
    for _ in range(2):
        decoder.step()
    decoder.add(sequences[2:])
    while decoder.busy:
        decoder.step()
    assert all(right(sequence) for sequence in sequences)
    assert all(sequence.accepted == sequence.drafted > 0 for sequence in sequences)


def test_while_nobody_waits_more_is_read_at_once() -> None:
    fed = Fed()
    decoder = make_decoder(fed)
    decoder.add([Sequence(prompt(200, 1), SamplingParams(max_tokens=40))])
    while decoder.busy:
        decoder.step()
    assert max(fed.draft) == STEP_SIZE
    # All but the pending token, and what plain steps meanwhile added.
    assert 200 - MAX_RIDE <= sum(fed.draft) <= 200 + len(fed.draft)


def test_rows_that_never_speculate_never_pay_for_the_draft() -> None:
    fed = Fed()
    decoder = make_decoder(fed, length=0)
    decoder.add([Sequence(prompt(100, 1), SamplingParams(max_tokens=10))])
    while decoder.busy:
        decoder.step()
    assert sum(fed.target) == 99
    assert fed.draft == []
