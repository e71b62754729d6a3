"""Planted bugs of scheduler and admission, each of which a test of theirs must notice.

The scheduler's own are hunted by the random histories of ``test_scheduler`` and two promises there;
those of the engine around it by ``run_traffic``, real models under random traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from mlx_spec.batching.row_memory import RowMemory
from mlx_spec.batching.scheduler import Scheduler
from mlx_spec.cache.budget import KVBudget
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.life_cycle import RequestState
from mlx_spec.sequence import Sequence
from tests import test_scheduler
from tests.scenario import make_jobs
from tests.scheduler_machine import SchedulerMachine
from tests.traffic import REQUESTS, run_traffic

Patch = pytest.MonkeyPatch
HISTORIES = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # found is enough, it need not be small
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


# --- the scheduler's ---


def budget_ignored_for_the_last(patch: Patch) -> None:
    """Whether rows fit is asked without the one that wants to join."""

    def wrong(self: Scheduler, staying: list[Sequence], request: Sequence) -> bool:
        fits = self.budget.fits([other.reserved for other in staying])
        return fits and len(staying) < self.limit.rows

    patch.setattr(Scheduler, "_fit", wrong)


def aging_dropped(patch: Patch) -> None:
    """The queue is sorted by priority alone."""
    patch.setattr(Scheduler, "_turn", lambda self, request: (-request.priority, request.arrival))


def order_ignored(patch: Patch) -> None:
    """First come, first served, whatever the priority."""
    patch.setattr(Scheduler, "_turn", lambda self, request: (request.arrival, request.arrival))


def running_ages(patch: Patch) -> None:
    """Time spent running counts as waited."""
    right = Scheduler._evict

    def wrong(self: Scheduler, victim: Sequence, now: float) -> None:
        since = victim._since
        right(self, victim, since)

    patch.setattr(Scheduler, "_evict", wrong)


def preempted_lost(patch: Patch) -> None:
    """Who loses its row does not queue again."""

    def wrong(self: Scheduler, victim: Sequence, now: float) -> None:
        self._running.remove(victim)
        victim.preempt(now)
        self.preempted += 1

    patch.setattr(Scheduler, "_evict", wrong)


def preempted_doubled(patch: Patch) -> None:
    """Who loses its row still counts as running."""
    right = Scheduler._evict

    def wrong(self: Scheduler, victim: Sequence, now: float) -> None:
        right(self, victim, now)
        self._running.append(victim)

    patch.setattr(Scheduler, "_evict", wrong)


def strongest_evicted(patch: Patch) -> None:
    """The victim is sought among the greatest claims first."""
    right = Scheduler._by_claim

    def wrong(requests: Iterable[Sequence]) -> list[Sequence]:
        return right(requests)[::-1]

    patch.setattr(Scheduler, "_by_claim", staticmethod(wrong))


def more_evicted_than_needed(patch: Patch) -> None:
    """Everybody weaker goes, whether room was needed or not."""
    right = Scheduler._make_room

    def wrong(self: Scheduler, request: Sequence, exempt: Any) -> list[Sequence] | None:
        victims = right(self, request, exempt)
        if victims:
            return [r for r in self._running if r.claim < request.priority and r not in exempt]
        return victims

    patch.setattr(Scheduler, "_make_room", wrong)


def cancelled_still_counted(patch: Patch) -> None:
    """A cancelled request keeps its row."""

    def wrong(self: Scheduler, request: Sequence) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
        elif request.state is not RequestState.CANCELLED:
            self._running.remove(request)

    patch.setattr(Scheduler, "remove", wrong)


def shrink_ignored(patch: Patch) -> None:
    """Fewer rows than run change nothing."""
    patch.setattr(Scheduler, "_shrink", lambda self, now: [])


def admission_after_shrink(patch: Patch) -> None:
    """Who lost its row to a smaller batch is let in again at once, past the rows there are."""
    right = Scheduler._shrink

    def wrong(self: Scheduler, now: float) -> list[Sequence]:
        victims = right(self, now)
        for victim in victims[:1]:
            self._waiting.remove(victim)
            self._running.append(victim)
            victim.admit(now)
        return victims

    patch.setattr(Scheduler, "_shrink", wrong)


def full_means_rows(patch: Patch) -> None:
    """A batch that is full of tokens waits for rows that cannot join."""
    patch.setattr(Scheduler, "_full", lambda self: len(self._waiting) >= self.limit.rows)


def histories() -> None:
    """Random histories of the scheduler alone."""
    run_state_machine_as_test(SchedulerMachine, settings=HISTORIES)  # type: ignore[no-untyped-call]


def full_of_tokens() -> None:
    """Two requests beside which nothing more fits; random histories seldom meet just that."""
    test_scheduler.test_a_batch_full_of_tokens_starts_at_once([40, 36], True)


# What each of them breaks, where it is not the histories.
HUNTS: dict[Callable[[Patch], None], Callable[[], None]] = {
    more_evicted_than_needed: test_scheduler.test_no_more_are_evicted_than_must_be,
    full_means_rows: full_of_tokens,
}
SCHEDULER = [
    budget_ignored_for_the_last,
    aging_dropped,
    order_ignored,
    running_ages,
    preempted_lost,
    preempted_doubled,
    strongest_evicted,
    more_evicted_than_needed,
    cancelled_still_counted,
    shrink_ignored,
    admission_after_shrink,
    full_means_rows,
]


def test_the_right_scheduler_breaks_nothing() -> None:
    for hunt in {histories, *HUNTS.values()}:
        hunt()


@pytest.mark.parametrize("plant", SCHEDULER, ids=lambda plant: plant.__name__)
def test_a_planted_bug_breaks_a_promise(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    # KeyError and ValueError: some bugs trip over themselves in the scheduler's own queues.
    with pytest.raises((AssertionError, KeyError, ValueError)):
        HUNTS.get(plant, histories)()


# --- the engine's ---


def _removed_unless(patch: Patch, state: RequestState) -> None:
    right = Scheduler.remove

    def wrong(self: Scheduler, request: Sequence) -> None:
        if request.state is not state:
            right(self, request)

    patch.setattr(Scheduler, "remove", wrong)


def cancelled_row_stays(patch: Patch) -> None:
    """The scheduler is not told that a request was cancelled."""
    _removed_unless(patch, RequestState.CANCELLED)


def finished_row_stays(patch: Patch) -> None:
    """The scheduler is not told that a request has ended."""
    _removed_unless(patch, RequestState.FINISHED)


def victim_keeps_decoding(patch: Patch) -> None:
    """The decoder is not told of a preemption."""
    patch.setattr(SpeculativeDecoder, "suspend", lambda self, sequence, save: None)


def slots_never_sized(patch: Patch) -> None:
    """Slots grow as the pool likes, whatever the budget."""
    patch.setattr(RowMemory, "_size_slots", lambda self: None)


def kept_aside_without_room(patch: Patch) -> None:
    """K/V of preempted rows are kept however many there are."""
    patch.setattr(RowMemory, "_drop_saved", lambda self: None)


def emitted_tokens_not_counted(patch: Patch) -> None:
    """Admission forgets the tokens that a request will emit."""

    def wrong(self: KVBudget, tokens: Any, guesses: Any = ()) -> int:
        return self.limit - self.nbytes([max(1, count - 30) for count in tokens], guesses)

    patch.setattr(KVBudget, "left", wrong)


def emitted_tokens_lost(patch: Patch) -> None:
    """A preempted row begins again after its prompt, with what it had said still counted."""
    right = SpeculativeDecoder.suspend

    def wrong(self: SpeculativeDecoder, sequence: Sequence, *, save: bool) -> None:
        right(self, sequence, save=save)
        if sequence.tokens:
            sequence.tokens[-1] = sequence.prompt[-1]

    patch.setattr(SpeculativeDecoder, "suspend", wrong)


ENGINE = [
    cancelled_row_stays,
    finished_row_stays,
    victim_keeps_decoding,
    slots_never_sized,
    kept_aside_without_room,
    emitted_tokens_not_counted,
    emitted_tokens_lost,
]


@pytest.fixture(autouse=True)
def _expected_outputs_without_a_bug() -> None:
    make_jobs("llama", True, REQUESTS)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_bug_the_traffic_is_served(seed: int) -> None:
    assert run_traffic(seed) == []


@pytest.mark.parametrize("plant", ENGINE, ids=lambda plant: plant.__name__)
def test_a_planted_bug_disturbs_the_traffic(
    plant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    """In one traffic or the other: which requests meet depends on when rows leave."""
    plant(monkeypatch)
    assert any(run_traffic(seed) for seed in range(2))
