"""The scheduler against a model of it, on a clock of its own: thousands of random histories.

``SchedulerMachine`` submits, plans, finishes, cancels and changes rows at random, and checks after
every plan what the scheduler promises. The tests after it pin single promises: nobody starves, an
idle batch starts exactly at ``wake_at``, and the histories that once broke a promise.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_spec.batching.engine import TokenBudget
from mlx_spec.batching.scheduler import Plan, Request, RequestState, Scheduler
from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.cost import RowCost
from mlx_spec.errors import InvalidRequest

FAST = settings(deadline=None, suppress_health_check=list(HealthCheck))
BLOCK = 4
PLENTY = KVBudget(RowCost(per_token=1), limit=10**9, block_size=BLOCK)


def make_scheduler(rows: int, limit: int = 10**9, **options: Any) -> Scheduler:
    options.setdefault("timeout", 0.0)
    return Scheduler(rows, budget=KVBudget(RowCost(per_token=1), limit, BLOCK), **options)


class SchedulerMachine(RuleBasedStateMachine):
    """Random histories.

    The model: ``live``, every request that has not ended, and ``waited``, the seconds that each
    has spent in the queue, counted tick by tick.
    """

    @initialize(
        rows=st.sampled_from([1, 2, 3, 7]),
        limit=st.integers(20, 400),
        together=st.one_of(st.none(), st.integers(20, 200)),
        timeout=st.sampled_from([0.0, 1.0, 2.5]),
        aging=st.sampled_from([0.0, 1.0, 10.0]),
        preemption=st.booleans(),
    )
    def start(
        self,
        rows: int,
        limit: int,
        together: int | None,
        timeout: float,
        aging: float,
        preemption: bool,
    ) -> None:
        self.now = 100.0
        self.budget = TokenBudget(KVBudget(RowCost(per_token=1), limit, BLOCK), together)
        self.scheduler = Scheduler(rows, timeout, self.budget, preemption=preemption, aging=aging)
        self.live: list[Request] = []
        self.waited: dict[Request, float] = {}
        self.ended: list[Request] = []
        self.submitted = 0
        self.evictions = 0

    # --- what may happen ---

    @rule(
        wishes=st.lists(
            st.tuples(st.integers(1, 110), st.sampled_from([-2, 0, 0, 1, 5])),
            min_size=1,
            max_size=5,
        )
    )
    def submit(self, wishes: list[tuple[int, int]]) -> None:
        for tokens, priority in wishes:
            self._submit(tokens, priority)

    def _submit(self, tokens: int, priority: int) -> None:
        request = Request(f"r{self.submitted}", tokens, priority, self.now)
        self.submitted += 1
        if not self._affordable([tokens]):
            with pytest.raises(InvalidRequest, match=rf"{request.request_id} can never fit: \d+"):
                self.scheduler.submit(request)
        else:
            self.scheduler.submit(request)
            self.live.append(request)
            self.waited[request] = 0.0

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 2.5, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for request in self.scheduler.waiting:
            self.waited[request] += seconds

    @rule(rows=st.sampled_from([1, 2, 3, 4, 7]))
    def set_rows(self, rows: int) -> None:
        self.scheduler.rows = rows

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.scheduler.running))
        self.scheduler.finish(request)
        assert request.state is RequestState.FINISHED
        self._end(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.live))
        self.scheduler.cancel(request)
        assert request.state is RequestState.CANCELLED
        self._end(request)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def cancel_again(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.ended))
        before = request.state
        self.scheduler.cancel(request)
        assert request.state is before

    def _end(self, request: Request) -> None:
        self.live.remove(request)
        self.ended.append(request)

    @rule(hurry=st.booleans())
    def plan(self, hurry: bool) -> None:
        scheduler = self.scheduler
        waiting, running = scheduler.waiting, scheduler.running
        claims = {request: request.claim for request in running}
        wake = scheduler.wake_at()
        plan = scheduler.plan(self.now, hurry=hurry)
        self.evictions += len(plan.preempt)
        self._check_moves(plan, waiting, running)
        self._check_limits()
        if not running and not hurry:
            full = len(waiting) >= scheduler.rows or not self._affordable(
                [1, *(request.tokens for request in waiting)]
            )
            ready = full or (wake is not None and self.now >= wake)
            assert bool(plan.admit) == ready
            if not ready:
                return
        self._check_order(plan, claims)
        self._check_victims(plan, claims)

    # --- what must hold after a plan ---

    def _check_moves(self, plan: Plan, waiting: list[Request], running: list[Request]) -> None:
        """Victims ran, newcomers waited, nobody else moved."""
        assert len(set(plan.admit)) == len(plan.admit)
        assert len(set(plan.preempt)) == len(plan.preempt)
        assert set(plan.preempt) <= set(running)
        assert set(plan.admit) <= set(waiting)
        expected = set(running) - set(plan.preempt) | set(plan.admit)
        assert set(self.scheduler.running) == expected
        assert self.scheduler.preempted == self.evictions
        for request in plan.admit:
            aging, waited = self.scheduler.aging, self.waited[request]
            assert request.claim == request.priority + (waited / aging if aging else 0.0)

    def _check_limits(self) -> None:
        assert len(self.scheduler.running) <= self.scheduler.rows
        assert self._affordable([request.tokens for request in self.scheduler.running])

    def _check_order(self, plan: Plan, claims: dict[Request, float]) -> None:
        """Nobody who waits could run now, and nobody who claims less went first."""
        left, rank = self.scheduler.waiting, self._rank
        assert plan.admit == sorted(plan.admit, key=rank)
        assert left == sorted(left, key=rank)
        head = min(left, key=rank, default=None)
        if head is not None and head not in plan.preempt:
            assert not self._fits(self.scheduler.running, head), "a row was left idle"
        for waiter in left:
            place = rank(waiter)
            # Who evicted it is more urgent than it was, however long it has been here.
            excused = claims.get(waiter, math.inf)
            passed = [
                request.request_id
                for request in plan.admit
                if rank(request) > place and request.priority <= excused
            ]
            assert not passed, f"{passed} went before {waiter.request_id}"

    def _rank(self, request: Request) -> tuple[float, float]:
        """Sorts waiting requests: the greatest claim, in seconds, first; then the earliest."""
        aging = self.scheduler.aging
        claim = request.priority * aging + self.waited[request] if aging else request.priority
        return (-claim, request.arrival)

    def _check_victims(self, plan: Plan, claims: dict[Request, float]) -> None:
        """Only what had to go went, and only for somebody more urgent."""
        surplus = max(0, len(claims) - self.scheduler.rows)
        least = sorted(claims.values())[:surplus]
        assert sorted(claims[victim] for victim in plan.preempt)[:surplus] == least
        if len(plan.preempt) == surplus:
            return
        assert self.scheduler.preemption
        highest = max(request.priority for request in plan.admit)
        for victim in plan.preempt[surplus:]:
            assert claims[victim] < highest
            assert not self._fits(self.scheduler.running, victim), "evicted without need"

    def _fits(self, running: list[Request], request: Request) -> bool:
        tokens = [other.tokens for other in [*running, request]]
        return len(tokens) <= self.scheduler.rows and self._affordable(tokens)

    def _affordable(self, tokens: list[int]) -> bool:
        """The limits in other words than the budget's own."""
        longest = -(-max(tokens, default=0) // BLOCK) * BLOCK
        most = self.budget.most_tokens
        return longest * len(tokens) <= self.budget.kv.limit and (
            most is None or sum(tokens) <= most
        )

    # --- what must hold always ---

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        waiting, running = self.scheduler.waiting, self.scheduler.running
        assert sorted(map(id, waiting + running)) == sorted(map(id, self.live))
        assert {r.state for r in running} <= {RequestState.RUNNING}
        assert {r.state for r in waiting} <= {RequestState.WAITING, RequestState.PREEMPTED}
        ended = {RequestState.FINISHED, RequestState.CANCELLED}
        assert {r.state for r in self.ended} <= ended
        wake = self.scheduler.wake_at()
        first = min((r.arrival for r in waiting), default=None)
        assert wake == (None if first is None else first + self.scheduler.timeout)


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
        self.left: dict[Request, int] = {}

    def submit(self, tokens: int, priority: int) -> Request:
        request = Request(f"r{len(self.left)}", tokens, priority, float(self.now))
        self.scheduler.submit(request)
        self.left[request] = self.service
        return request

    def tick(self) -> None:
        self.scheduler.plan(float(self.now))
        for request in self.scheduler.running:
            self.left[request] -= 1
            if self.left[request] == 0:
                self.scheduler.finish(request)
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
    scheduler.submit(Request("a", 4, arrival=1.7))
    scheduler.submit(Request("b", 4, arrival=1.75))
    wake = scheduler.wake_at()
    assert wake == 1.7 + 0.1
    assert scheduler.plan(math.nextafter(wake, 0.0)) == Plan()
    assert [r.request_id for r in scheduler.plan(wake).admit] == ["a", "b"]
    # Busy, it lets newcomers in at once.
    late = Request("c", 4, arrival=wake)
    scheduler.submit(late)
    assert scheduler.plan(wake).admit == [late]


def test_a_full_batch_starts_at_once() -> None:
    scheduler = make_scheduler(2, timeout=9.0)
    scheduler.submit(Request("a", 4, arrival=1.0))
    assert scheduler.plan(1.0) == Plan()
    scheduler.submit(Request("b", 4, arrival=1.0))
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
    scheduler = Scheduler(8, 9.0, TokenBudget(PLENTY, most))
    for number, count in enumerate(tokens):
        scheduler.submit(Request(str(number), count, arrival=1.0))
    assert scheduler.due(1.0) == starts
    assert bool(scheduler.plan(1.0).admit) == starts


def test_only_waiting_ages_and_it_goes_on_after_a_preemption() -> None:
    """Stops an inversion by age: who has run long has had its turn, and claims no more by it."""
    scheduler = make_scheduler(1, aging=10.0)
    old = Request("old", 4, priority=0, arrival=0.0)
    scheduler.submit(old)
    scheduler.plan(20.0)
    assert old.claim == 2.0  # it waited 20 s
    scheduler.submit(Request("urgent", 4, priority=3, arrival=1000.0))
    assert scheduler.plan(1000.0).preempt == [old]
    scheduler.submit(Request("young", 4, priority=2, arrival=1001.0))
    scheduler.submit(Request("younger", 4, priority=3, arrival=1005.0))
    # Claims at 1010: old 2 + 1, young 2 + 0.9, younger 3 + 0.5; the 980 s that old ran are no part.
    assert [r.request_id for r in scheduler.waiting] == ["younger", "old", "young"]
    scheduler.finish(scheduler.running[0])
    assert [r.request_id for r in scheduler.plan(1010.0).admit] == ["younger"]
    scheduler.finish(scheduler.running[0])
    scheduler.plan(1010.0)
    assert scheduler.running == [old]
    assert old.claim == 3.0


def test_fewer_rows_evict_the_least_claims_and_more_take_them_back() -> None:
    scheduler = make_scheduler(4)
    requests = [Request(str(i), 4, priority=i % 3, arrival=float(i)) for i in range(4)]
    for request in requests:
        scheduler.submit(request)
        scheduler.plan(request.arrival)
    scheduler.rows = 2
    plan = scheduler.plan(5.0)
    # Least claim first; among equals (0 and 3) the one that came last.
    assert [r.request_id for r in plan.preempt] == ["3", "0"]
    assert {r.state for r in plan.preempt} == {RequestState.PREEMPTED}
    assert plan.admit == []
    scheduler.rows = 4
    assert [r.request_id for r in scheduler.plan(6.0).admit] == ["0", "3"]


def test_only_who_is_more_urgent_evicts_and_equals_never_do() -> None:
    scheduler = make_scheduler(1)
    first = Request("first", 4, priority=1)
    scheduler.submit(first)
    scheduler.plan(0.0)
    scheduler.submit(Request("equal", 4, priority=1))
    assert scheduler.plan(1e6) == Plan()  # a claim grown by waiting evicts nobody either
    urgent = Request("urgent", 4, priority=200_000, arrival=1e6)
    scheduler.submit(urgent)
    assert scheduler.plan(1e6) == Plan([first], [urgent])


def test_no_more_are_evicted_than_must_be() -> None:
    """The least claim goes first, but stays if the next one's place is needed and is enough."""
    scheduler = Scheduler(4, 0.0, TokenBudget(PLENTY, 120))
    small, big = Request("small", 10, 0), Request("big", 100, 1)
    scheduler.submit(small)
    scheduler.submit(big)
    scheduler.plan(0.0)
    urgent = Request("urgent", 100, 5, arrival=1.0)
    scheduler.submit(urgent)
    assert scheduler.plan(1.0) == Plan([big], [urgent])
    assert scheduler.running == [small, urgent]


def test_nobody_slips_past_one_that_was_evicted_just_now() -> None:
    scheduler = Scheduler(4, 0.0, TokenBudget(PLENTY, 100))
    victim = Request("victim", 60, 0)
    scheduler.submit(victim)
    scheduler.plan(0.0)
    urgent, least = Request("urgent", 50, 5, 1.0), Request("least", 40, -1, 1.0)
    scheduler.submit(urgent)
    scheduler.submit(least)
    assert scheduler.plan(1.0) == Plan([victim], [urgent])


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(4, limit=40)
    with pytest.raises(InvalidRequest, match=r"big can never fit: 41 tokens need 44 bytes.*40 are"):
        scheduler.submit(Request("big", 41))
    assert scheduler.waiting == []
