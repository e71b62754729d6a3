"""Planted bugs in the order of a step: who has read what, which rows are whose.

Each is red in a batch of more than one row, with rows that join, are fed, end and leave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.flight import Flight
from mlx_spec.decoding.members import Members
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.errors import MlxSpecError
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.scenario import Job, make_jobs, noisy_draft, run_jobs, target
from tests.test_rules import NotTwice, NotTwiceOnHost

Patch = pytest.MonkeyPatch
ROWS = 5


@cache
def jobs() -> tuple[Job, ...]:
    return make_jobs("llama", False, 2 * ROWS + 1)


def ran(**options: Any) -> list[list[int]]:
    """What each request says; prompts are fed in chunks of four tokens while others decode."""
    batching = BatchingConfig(batch_size=ROWS, prefill_step_size=16, prefill_interleave=4)
    decoder = SpeculativeDecoder(target("llama"), batching=batching, **options)
    return [sequence.tokens for sequence in run_jobs(decoder, jobs())]


def drafted() -> list[list[int]]:
    drafter = ModelDrafter(ModelRunner(noisy_draft("llama"), ROWS))
    return ran(drafter=drafter, policy=RaggedPolicy())


def wrong(patch: Patch, plant: Callable[[Patch], None], run: Callable[[], Any]) -> bool:
    """Whether a bug shows: another result, or an exception of ours or of the rows' order."""
    right = run()
    plant(patch)
    try:
        return bool(run() != right)
    except (MlxSpecError, ValueError, KeyError, AssertionError):
        return True


def chunk_where_rows_stood(patch: Patch) -> None:
    """A chunk is written where the step in flight has rows: slots as they were at its launch."""
    launch, fill = Stepper.launch, Members.fill
    stood: list[int] = [0]

    def launching(self: Stepper, flight: Flight, *begun: Any) -> Flight:
        stood[0] = len(flight.rows)
        return launch(self, flight, *begun)

    def filling(self: Members) -> Any:
        build, shift = self.feeder.build, stood[0] - len(self._state)

        def shifted(slots: Any, *more: Any) -> Any:
            return build({row: max(0, slot + min(shift, -1)) for row, slot in slots.items()}, *more)

        self.feeder.build = shifted  # type: ignore[method-assign]
        try:
            return fill(self)
        finally:
            self.feeder.build = build  # type: ignore[method-assign]

    patch.setattr(Stepper, "launch", launching)
    patch.setattr(Members, "fill", filling)


def target_state_of_a_dropped_step_kept(patch: Patch) -> None:
    """Known tokens stay as the step that was never launched would have left them."""
    right = Stepper.restore

    def planted(self: Stepper, snapshot: Any) -> None:
        state = self.parts.state
        kept = state.tokens, state.lengths, state.seen
        right(self, snapshot)
        state.tokens, state.lengths, state.seen = kept

    patch.setattr(Stepper, "restore", planted)


def past_its_end_a_row_emits(patch: Patch) -> None:
    """Results of a row that had ended when the step was launched are somebody's."""
    patch.setattr(Stepper, "leave", lambda self, row, **save: self.members.leave(row, **save))
    right_extend = Sequence.extend

    def extend(self: Sequence, tokens: Any) -> list[int]:
        if self.ended:  # as if its life cycle did not guard it
            self.tokens += tokens
            return list(tokens)
        return right_extend(self, tokens)

    patch.setattr(Sequence, "extend", extend)


def results_in_the_order_of_new_members(patch: Patch) -> None:
    """A step is read as if its rows were those that the slots hold by now."""
    right = Stepper.read

    def planted(self: Stepper, flight: Flight) -> None:
        now = self.parts.state.sequences
        flight.rows = (now + flight.rows)[: len(flight.rows)]
        right(self, flight)

    patch.setattr(Stepper, "read", planted)


def bounds_without_the_step_in_flight(patch: Patch) -> None:
    """The next step is planned as if the one in flight added nothing."""
    right = Stepper.plan

    def planted(self: Stepper) -> Any:
        flight, self.flight = self.flight, None
        try:
            return right(self)
        finally:
            self.flight = flight

    patch.setattr(Stepper, "plan", planted)


def seen_runs_ahead(patch: Patch) -> None:
    """The target is said to have read the pending tokens of newcomers."""
    right = BatchState.rearrange

    def planted(self: BatchState, order: Any, newcomers: Any, **more: Any) -> None:
        right(self, order, newcomers, **more)
        if newcomers:
            rest = mx.arange(len(self)) >= len(order)
            self.seen = mx.where(rest, self.lengths, self.seen)

    patch.setattr(BatchState, "rearrange", planted)


AHEAD = [
    chunk_where_rows_stood,
    target_state_of_a_dropped_step_kept,
    past_its_end_a_row_emits,
    results_in_the_order_of_new_members,
    bounds_without_the_step_in_flight,
    seen_runs_ahead,
]


def test_without_a_bug_nothing_is_wrong() -> None:
    assert drafted() == [list(job.expected) for job in jobs()]


@pytest.mark.parametrize("plant", AHEAD, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    assert wrong(monkeypatch, plant, drafted)


def chosen_before_the_draft_is_shown(patch: Patch) -> None:
    """Tokens are chosen by the masks of the step before: the draft was not read yet."""
    right = NotTwiceOnHost.see

    def late(self: Any, sequences: Any, draft: list[list[int]]) -> None:
        stale = getattr(self, "stale", None)
        right(self, sequences, draft)
        self.stale = self.previous
        if stale is not None and stale.shape == self.previous.shape:
            self.previous = stale

    patch.setattr(NotTwiceOnHost, "see", late)


def test_choosing_before_verify_is_read_is_noticed(monkeypatch: Patch) -> None:
    def ruled() -> list[list[int]]:
        drafter = ModelDrafter(ModelRunner(noisy_draft("llama"), ROWS))
        return ran(drafter=drafter, policy=RaggedPolicy(), rules=[NotTwiceOnHost()])

    assert ruled() == ran(rules=[NotTwice()])
    assert wrong(monkeypatch, chosen_before_the_draft_is_shown, ruled)


def draft_rows_wrong() -> int:
    """How often a draft's row does not hold what the drafter takes for read, after dropped steps.

    When one of two rows ends the next step is dropped, and plain steps leave the drafter behind.
    """
    return sum(draft_rows_wrong_by([0] * plain + [3]) for plain in (2, 3, 4))


def draft_rows_wrong_by(cycle: list[int]) -> int:
    """The same of draft lengths in this order: the dropped step must be one that drafts."""
    drafter = ModelDrafter(ModelRunner(target("llama"), 2))
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=drafter,
        policy=CyclingPolicy(cycle),
        batching=BatchingConfig(batch_size=2),
    )
    waiting = [Sequence([1 + i] * (3 + i), SamplingParams(max_tokens=7 + 3 * i)) for i in range(6)]
    dropped = findings = 0
    while waiting or decoder.busy:
        joining, waiting = waiting[: decoder.free_rows], waiting[decoder.free_rows :]
        decoder.add(joining)
        decoder.step()
        if decoder._stepper.flight is None:
            dropped += 1
            findings += sum(not holds(drafter, row) for row in range(len(drafter._rows)))
    assert dropped > 3, "nothing was dropped"
    return findings


def holds(drafter: ModelDrafter, row: int) -> bool:
    """Whether a row's K/V are those of a lone cache, as far as they count as read."""
    seen, lone = drafter._seen(row), make_prompt_cache(drafter.runner.model)
    if seen == 0:
        return True
    drafter.runner.model(mx.array([drafter._rows[row].known(0, seen)]), cache=lone)
    pairs = zip(drafter.runner.pool.arrays[::2], lone, strict=True)
    return all(
        mx.allclose(ours[row, :, :seen], theirs.state[0][0, :, :seen], atol=1e-4).item()
        for ours, theirs in pairs
    )


def draft_state_of_a_dropped_step_kept(patch: Patch) -> None:
    """The drafter takes for read what it read for the dropped step."""
    restore = lambda self, snapshot: self.runner.pool.restore(snapshot[0])  # noqa: E731
    patch.setattr(ModelDrafter, "restore", restore)


def test_a_dropped_step_s_draft_is_forgotten(monkeypatch: Patch) -> None:
    """Outputs do not show it: it costs accepted guesses, now and then."""
    assert draft_rows_wrong() == 0
    assert wrong(monkeypatch, draft_state_of_a_dropped_step_kept, draft_rows_wrong)
