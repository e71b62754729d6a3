"""The scheduler on a clock of its own: thousands of random histories, and single promises.

Nobody starves, an idle batch starts exactly at ``wake_at``, and the histories that once broke a
promise.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_spec.batching.engine import TokenBudget
from mlx_spec.batching.scheduler import Scheduler, SchedulerOutput
from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.cost import RowCost
from mlx_spec.errors import InvalidRequest
from mlx_spec.life_cycle import RequestState
from mlx_spec.row_limit import RowLimit
from mlx_spec.sequence import Sequence
from tests.scheduler_machine import BLOCK, SchedulerMachine, end, make_request, make_scheduler
from tests.test_architecture import imports

FAST = settings(deadline=None, suppress_health_check=list(HealthCheck))
PLENTY = KVBudget(RowCost(per_token=1), limit=10**9, block_size=BLOCK)

TestHistories = SchedulerMachine.TestCase
TestHistories.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- nobody starves ---


class Flood:
    """One early request of low priority, and a stream of newcomers that all claim more.

    Every request needs ``service`` ticks of running, in as many pieces as it may be cut into.
    """

    def __init__(self, scheduler: Scheduler, service: int) -> None:
        self.scheduler = scheduler
        self.service = service
        self.now = 0
        self.left: dict[Sequence, int] = {}

    def submit(self, tokens: int, priority: int) -> Sequence:
        request = make_request(f"r{len(self.left)}", tokens, priority, float(self.now))
        self.scheduler.submit(request)
        self.left[request] = self.service
        return request

    def tick(self) -> None:
        self.scheduler.plan(float(self.now))
        for request in self.scheduler.running:
            self.left[request] -= 1
            if self.left[request] == 0:
                end(self.scheduler, request)
        self.now += 1


@given(
    rows=st.integers(1, 3),
    service=st.integers(1, 6),
    aging=st.sampled_from([1.0, 3.0]),
    highest=st.integers(0, 6),
    preemption=st.booleans(),
    newcomers=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=6),
    early=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=6),
)
@settings(FAST, max_examples=100)
def test_nobody_starves(
    rows: int,
    service: int,
    aging: float,
    highest: int,
    preemption: bool,
    newcomers: list[tuple[int, int]],
    early: list[tuple[int, int]],
) -> None:
    """However many urgent requests come, the least one ends within a bound.

    Once it has waited ``aging * highest`` seconds nobody who comes can claim more than it does,
    and it has run for less than ``service`` by then. From then on only those that were there
    before can run before it, for ``service`` ticks each, and at least one of them runs at any time.
    """
    scheduler = make_scheduler(rows, 40, aging=aging, preemption=preemption)
    flood = Flood(scheduler, service)
    for tokens, priority in early:
        flood.submit(tokens, min(priority, highest))
    least = flood.submit(40, 0)  # as large as may be: it never fits beside another
    turn = 0
    while flood.now <= aging * highest + service:
        tokens, priority = newcomers[turn % len(newcomers)]
        flood.submit(tokens, min(priority, highest))
        flood.tick()
        turn += 1
    bound = flood.now + service * (len(scheduler.waiting) + len(scheduler.running) + 1)
    while flood.left[least]:
        tokens, priority = newcomers[turn % len(newcomers)]
        flood.submit(tokens, min(priority, highest))
        flood.tick()
        turn += 1
        assert flood.now <= bound, "starved"


def test_without_aging_the_urgent_always_go_first() -> None:
    """What the bound rests on: take the aging away and the least request never runs."""
    flood = Flood(make_scheduler(1, aging=0.0), service=2)
    least = flood.submit(4, 0)
    for _ in range(200):
        flood.submit(4, 1)
        flood.tick()
    assert flood.left[least] == 2


# --- single promises ---


def test_an_idle_batch_starts_at_wake_at_and_not_before() -> None:
    scheduler = make_scheduler(3, timeout=0.1)
    assert scheduler.wake_at() is None
    scheduler.submit(make_request("a", 4, arrival=1.7))
    scheduler.submit(make_request("b", 4, arrival=1.75))
    wake = scheduler.wake_at()
    assert wake == 1.7 + 0.1
    assert scheduler.plan(math.nextafter(wake, 0.0)) == SchedulerOutput()
    assert [r.request_id for r in scheduler.plan(wake).admit] == ["a", "b"]
    # Busy, it lets newcomers in at once.
    late = make_request("c", 4, arrival=wake)
    scheduler.submit(late)
    assert scheduler.plan(wake).admit == [late]


def test_a_full_batch_starts_at_once() -> None:
    scheduler = make_scheduler(2, timeout=9.0)
    scheduler.submit(make_request("a", 4, arrival=1.0))
    assert scheduler.plan(1.0) == SchedulerOutput()
    scheduler.submit(make_request("b", 4, arrival=1.0))
    assert len(scheduler.plan(1.0).admit) == 2


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        ([40, 40], True),  # the second one does not fit beside the first
        ([40, 36], True),  # both fit, and nothing more does
        ([40, 35], False),
        ([100], True),
        ([99], False),
    ],
)
def test_a_batch_full_of_tokens_starts_at_once(tokens: list[int], starts: bool) -> None:
    """Stops a wait for rows that could not be filled: 76 tokens together, or 100 alone."""
    most = 100 if len(tokens) == 1 else 76
    scheduler = Scheduler(RowLimit(8), 9.0, TokenBudget(PLENTY, most))
    for number, count in enumerate(tokens):
        scheduler.submit(make_request(str(number), count, arrival=1.0))
    assert scheduler.due(1.0) == starts
    assert bool(scheduler.plan(1.0).admit) == starts


def test_only_waiting_ages_and_it_goes_on_after_a_preemption() -> None:
    """Stops an inversion by age: who has run long has had its turn, and claims no more by it."""
    scheduler = make_scheduler(1, aging=10.0)
    old = make_request("old", 4, priority=0, arrival=0.0)
    scheduler.submit(old)
    scheduler.plan(20.0)
    assert old.claim == 2.0  # it waited 20 s
    scheduler.submit(make_request("urgent", 4, priority=3, arrival=1000.0))
    assert scheduler.plan(1000.0).preempt == [old]
    scheduler.submit(make_request("young", 4, priority=2, arrival=1001.0))
    scheduler.submit(make_request("younger", 4, priority=3, arrival=1005.0))
    # Claims at 1010: old 2 + 1, young 2 + 0.9, younger 3 + 0.5; the 980 s that old ran are no part.
    assert [r.request_id for r in scheduler.waiting] == ["younger", "old", "young"]
    end(scheduler, scheduler.running[0])
    assert [r.request_id for r in scheduler.plan(1010.0).admit] == ["younger"]
    end(scheduler, scheduler.running[0])
    scheduler.plan(1010.0)
    assert scheduler.running == [old]
    assert old.claim == 3.0


def test_fewer_rows_evict_the_least_claims_and_more_take_them_back() -> None:
    scheduler = make_scheduler(4)
    requests = [make_request(str(i), 4, priority=i % 3, arrival=float(i)) for i in range(4)]
    for request in requests:
        scheduler.submit(request)
        scheduler.plan(request.arrival)
    scheduler.limit.rows = 2
    plan = scheduler.plan(5.0)
    # Least claim first; among equals (0 and 3) the one that came last.
    assert [r.request_id for r in plan.preempt] == ["3", "0"]
    assert {r.state for r in plan.preempt} == {RequestState.PREEMPTED}
    assert plan.admit == []
    scheduler.limit.rows = 4
    assert [r.request_id for r in scheduler.plan(6.0).admit] == ["0", "3"]


def test_only_who_is_more_urgent_evicts_and_equals_never_do() -> None:
    scheduler = make_scheduler(1)
    first = make_request("first", 4, priority=1)
    scheduler.submit(first)
    scheduler.plan(0.0)
    scheduler.submit(make_request("equal", 4, priority=1))
    assert scheduler.plan(1e6) == SchedulerOutput()  # a claim grown by waiting evicts nobody either
    urgent = make_request("urgent", 4, priority=200_000, arrival=1e6)
    scheduler.submit(urgent)
    assert scheduler.plan(1e6) == SchedulerOutput([first], [urgent])


def test_no_more_are_evicted_than_must_be() -> None:
    """The least claim goes first, but stays if the next one's place is needed and is enough."""
    scheduler = Scheduler(RowLimit(4), 0.0, TokenBudget(PLENTY, 120))
    small, big = make_request("small", 10, 0), make_request("big", 100, 1)
    scheduler.submit(small)
    scheduler.submit(big)
    scheduler.plan(0.0)
    urgent = make_request("urgent", 100, 5, arrival=1.0)
    scheduler.submit(urgent)
    assert scheduler.plan(1.0) == SchedulerOutput([big], [urgent])
    assert scheduler.running == [small, urgent]


def test_nobody_slips_past_one_that_was_evicted_just_now() -> None:
    scheduler = Scheduler(RowLimit(4), 0.0, TokenBudget(PLENTY, 100))
    victim = make_request("victim", 60, 0)
    scheduler.submit(victim)
    scheduler.plan(0.0)
    urgent, least = make_request("urgent", 50, 5, 1.0), make_request("least", 40, -1, 1.0)
    scheduler.submit(urgent)
    scheduler.submit(least)
    assert scheduler.plan(1.0) == SchedulerOutput([victim], [urgent])


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(4, limit=40)
    with pytest.raises(InvalidRequest, match=r"big can never fit: 41 tokens need 44 bytes.*40 are"):
        scheduler.submit(make_request("big", 41))
    assert scheduler.waiting == []


def imports_of(file: str) -> set[str]:
    return set(imports(Path(f"batching/{file}.py")))


def test_it_knows_no_mlx_no_clock_and_no_record_of_ours() -> None:
    names = imports_of("scheduler") | imports_of("schedulable")
    ours = {name for name in names if name.startswith("mlx")}
    asked = {f"mlx_spec.batching.schedulable.{name}" for name in ("Budget", "R")}
    assert ours == {"mlx_spec.errors.InvalidRequest", "mlx_spec.row_limit.RowLimit", *asked}
    assert "time" not in {name.split(".")[0] for name in names}
