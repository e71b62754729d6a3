"""Random histories of the scheduler, checked against a model of it, and what its tests share.

``SchedulerMachine`` submits, plans, finishes, cancels and changes rows at random, and checks after
every plan what the scheduler promises.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_spec.batching.memory import TokenBudget
from mlx_spec.batching.scheduler import Scheduler, SchedulerOutput
from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.cost import RowCost
from mlx_spec.errors import IllegalTransition, InvalidRequest
from mlx_spec.life_cycle import RequestState
from mlx_spec.row_limit import RowLimit
from mlx_spec.sequence import Sequence

BLOCK = 4


def make_scheduler(rows: int, limit: int = 10**9, **options: Any) -> Scheduler:
    options.setdefault("timeout", 0.0)
    budget = TokenBudget(KVBudget(RowCost(per_token=1), limit, BLOCK), None)
    return Scheduler(RowLimit(rows), budget=budget, **options)


def make_request(name: str, tokens: int, priority: int = 0, arrival: float = 0.0) -> Sequence:
    """A request that may come to hold so many tokens."""
    request = Sequence([0], request_id=name, priority=priority)
    request.submit(arrival, tokens)
    return request


def end(scheduler: Scheduler, request: Sequence) -> None:
    """Let a request that holds a row reach its end."""
    if request.state is not RequestState.RUNNING:
        request.start()
    request.finish("length")
    scheduler.remove(request)


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
        self.scheduler = Scheduler(
            RowLimit(rows), timeout, self.budget, preemption=preemption, aging=aging
        )
        self.live: list[Sequence] = []
        self.waited: dict[Sequence, float] = {}
        self.ended: list[Sequence] = []
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
        request = make_request(f"r{self.submitted}", tokens, priority, self.now)
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
        self.scheduler.limit.rows = rows

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.scheduler.running))
        end(self.scheduler, request)
        self._end(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.live))
        request.cancel()
        self.scheduler.remove(request)
        self._end(request)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def cancel_again(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.ended))
        before = request.state
        with pytest.raises(IllegalTransition):
            request.cancel()
        assert request.state is before

    def _end(self, request: Sequence) -> None:
        self.live.remove(request)
        self.ended.append(request)

    @rule(
        wishes=st.lists(
            st.tuples(st.integers(1, 60), st.sampled_from([0, 1, 5])), min_size=1, max_size=3
        ),
        seconds=st.sampled_from([0.25, 1.0, 2.5]),
        ends=st.booleans(),
        fewer=st.booleans(),
    )
    def some_traffic(
        self, wishes: list[tuple[int, int]], seconds: float, ends: bool, fewer: bool
    ) -> None:
        """What a while of serving is made of; single rules seldom line up so."""
        for wish in wishes:
            self._submit(*wish)
            self.wait(seconds)
            self.plan(hurry=True)
        if fewer:  # for a moment
            rows = self.scheduler.limit.rows
            self.set_rows(max(1, rows // 2))
            self.plan(hurry=True)
            self.set_rows(rows)
        if ends and self.scheduler.running:
            request = self.scheduler.running[0]
            end(self.scheduler, request)
            self._end(request)
            self.plan(hurry=True)

    @rule(hurry=st.booleans())
    def plan(self, hurry: bool) -> None:
        scheduler = self.scheduler
        waiting, running = scheduler.waiting, scheduler.running
        claims = {request: request.claim for request in running}
        wake = scheduler.wake_at()
        plan = scheduler.plan(self.now, hurry=hurry)
        self.evictions += len(plan.preempt)
        for request in plan.admit[::2]:  # whether its prompt is read is nothing to the scheduler
            request.start()
        self._check_moves(plan, waiting, running)
        self._check_limits()
        if not running and not hurry:
            full = len(waiting) >= scheduler.limit.rows or not self._affordable(
                [1, *(request.reserved for request in waiting)]
            )
            ready = full or (wake is not None and self.now >= wake)
            assert bool(plan.admit) == ready
            if not ready:
                return
        self._check_order(plan, claims)
        self._check_victims(plan, claims)

    # --- what must hold after a plan ---

    def _check_moves(
        self, plan: SchedulerOutput, waiting: list[Sequence], running: list[Sequence]
    ) -> None:
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
        assert len(self.scheduler.running) <= self.scheduler.limit.rows
        assert self._affordable([request.reserved for request in self.scheduler.running])

    def _check_order(self, plan: SchedulerOutput, claims: dict[Sequence, float]) -> None:
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

    def _rank(self, request: Sequence) -> tuple[float, float]:
        """Sorts waiting requests: the greatest claim, in seconds, first; then the earliest."""
        aging = self.scheduler.aging
        claim = request.priority * aging + self.waited[request] if aging else request.priority
        return (-claim, request.arrival)

    def _check_victims(self, plan: SchedulerOutput, claims: dict[Sequence, float]) -> None:
        """Only what had to go went, and only for somebody more urgent."""
        surplus = max(0, len(claims) - self.scheduler.limit.rows)
        least = sorted(claims.values())[:surplus]
        assert sorted(claims[victim] for victim in plan.preempt)[:surplus] == least
        if len(plan.preempt) == surplus:
            return
        assert self.scheduler.preemption
        highest = max(request.priority for request in plan.admit)
        for victim in plan.preempt[surplus:]:
            assert claims[victim] < highest
            assert not self._fits(self.scheduler.running, victim), "evicted without need"

    def _fits(self, running: list[Sequence], request: Sequence) -> bool:
        tokens = [other.reserved for other in [*running, request]]
        return len(tokens) <= self.scheduler.limit.rows and self._affordable(tokens)

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
        assert {r.state for r in running} <= {RequestState.PREFILLING, RequestState.RUNNING}
        assert {r.state for r in waiting} <= {RequestState.WAITING, RequestState.PREEMPTED}
        ended = {RequestState.FINISHED, RequestState.CANCELLED}
        assert {r.state for r in self.ended} <= ended
        wake = self.scheduler.wake_at()
        first = min((r.arrival for r in waiting), default=None)
        assert wake == (None if first is None else first + self.scheduler.timeout)
