"""Who runs next: queues, priorities, preemption. No mlx, no clock of its own, no thread.

The scheduler knows requests by their priority, arrival and the tokens they may come to hold
(``Schedulable``); it admits and preempts them, and who ends them takes them out. A ``Budget`` says
which of them fit together. At each step boundary the caller asks for a ``SchedulerOutput`` with the
time of its own clock, so that waiting times are tested without sleeping.

Order: a waiting request's claim is its priority plus what it has waited (``aging`` seconds count
as one priority level), so everybody's turn comes. Time spent running is not waited: a running
request holds the claim it was admitted with, and goes on from there if it must wait again. Only a
request whose *own* priority exceeds that claim may take its place, so equals never take turns in
evicting each other.

All claims that wait grow at one rate, so their order never changes: the queue is kept sorted, and
a step looks at its head only.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Generic

from mlx_spec.batching.schedulable import Budget, R
from mlx_spec.errors import InvalidRequest
from mlx_spec.row_limit import RowLimit


@dataclass(frozen=True)
class SchedulerOutput(Generic[R]):
    """What to do at a step boundary: first preempt, then admit."""

    preempt: list[R] = field(default_factory=list)
    admit: list[R] = field(default_factory=list)


class Scheduler(Generic[R]):
    """Queues of requests over a number of rows and a memory budget.

    Args:
        limit: most requests that run together; asked at every plan.
        timeout: while nothing runs, the longest wait for a full batch, in seconds.
        budget: which requests fit together.
        preemption: whether a more urgent request may take a running one's place.
        aging: seconds of waiting that count as one level of priority.
    """

    def __init__(
        self,
        limit: RowLimit,
        timeout: float,
        budget: Budget,
        *,
        preemption: bool = True,
        aging: float = 10.0,
    ) -> None:
        self.limit = limit
        self.timeout = timeout
        self.budget = budget
        self.preemption = preemption
        self.aging = aging
        self.preempted = 0  # evictions, over all time
        self._waiting: list[R] = []  # sorted by _turn
        self._running: list[R] = []

    @property
    def waiting(self) -> list[R]:
        """Requests not running, preempted ones included; whose turn comes first stands first."""
        return list(self._waiting)

    @property
    def backlog(self) -> int:
        """The number of :attr:`waiting` requests, without a list of them."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """The number of :attr:`running` requests."""
        return len(self._running)

    @property
    def running(self) -> list[R]:
        """Requests that hold a row."""
        return list(self._running)

    def check(self, request: R, reserved: int) -> None:
        """Refuse a request that may come to hold so many tokens and could not run even alone.

        Raises:
            InvalidRequest: the numbers.
        """
        needs = [reserved], [request.guesses]
        if not self.budget.fits(*needs):
            raise InvalidRequest(
                f"[Scheduler.submit] request {request.request_id} can never fit: "
                f"{self.budget.explain(*needs)}"
            )

    def submit(self, request: R) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it could not run even alone.
        """
        self.check(request, request.reserved)
        self._queue(request)

    def remove(self, request: R) -> None:
        """A request has ended, or is about to be cancelled, wherever it stands."""
        (self._running if request in self._running else self._waiting).remove(request)

    def evict_all(self, now: float) -> list[R]:
        """Who holds a row waits again."""
        victims = self.running
        for victim in victims:
            self._evict(victim, now)
        return victims

    def wake_at(self) -> float | None:
        """While idle: when the oldest request has waited long enough; None if none waits."""
        if not self._waiting:
            return None
        return min(request.arrival for request in self._waiting) + self.timeout

    def due(self, now: float) -> bool:
        """Whether a step has something to do: rows run, or an idle batch may start.

        An idle batch starts when it is full, be it of rows or of tokens, or when its first
        request has waited long enough.
        """
        if self._running:
            return True
        wake = self.wake_at()
        return wake is not None and (now >= wake or self._full())

    def plan(self, now: float, *, hurry: bool = False) -> SchedulerOutput[R]:
        """Decide who runs from this boundary on: they are preempted and admitted by it.

        Args:
            now: the caller's clock, in seconds.
            hurry: do not wait for a batch to fill (nothing more will come).
        """
        if not hurry and not self.due(now):
            return SchedulerOutput()
        preempted = self._shrink(now)
        admitted: list[R] = []
        # Whoever comes after one that waits would keep it waiting for ever: order is kept, and
        # one that was evicted just now waits too.
        while self._waiting and self._waiting[0] not in preempted:
            request = self._waiting[0]
            victims = self._make_room(request, exempt=admitted)
            if victims is None:
                break
            del self._waiting[0]  # before the victims queue: one of them may come first now
            for victim in victims:
                self._evict(victim, now)
            preempted += victims
            self._running.append(request)
            request.admit(now, self._claim(request, now))
            admitted.append(request)
        return SchedulerOutput(preempted, admitted)

    def grow(self, request: R, reserved: int, now: float) -> list[R] | None:
        """Let a running request hold more: it fits alone, and perhaps not beside all others.

        Returns:
            Who is preempted for it, the least claims first, perhaps itself; None where there is no
            room and nobody may be preempted: then nothing changes.
        """

        def fits(others: Seq[R]) -> bool:
            tokens = [reserved if other is request else other.reserved for other in others]
            return self.budget.fits(tokens, [other.guesses for other in others])

        victims = self._victims(self._running, fits)
        if victims is None:
            return None
        request.reserve(reserved)
        for victim in victims:
            self._evict(victim, now)
        return victims

    def _full(self) -> bool:
        """Whether nothing more could join what waits, not even a request of one token."""
        if len(self._waiting) >= self.limit.rows:
            return True
        tokens = [request.reserved for request in self._waiting]
        return not self.budget.fits([*tokens, 1], [*(r.guesses for r in self._waiting), 0])

    def _claim(self, request: R, now: float) -> float:
        waited = now - request.arrival - request.ran
        return request.priority + (waited / self.aging if self.aging > 0 else 0.0)

    def _turn(self, request: R) -> tuple[float, float]:
        """Sorts waiting requests: the greatest claim first, then the earliest arrival.

        In seconds, less what is the same for all of them at any time.
        """
        if self.aging <= 0:
            return (-request.priority, request.arrival)
        return (request.arrival + request.ran - request.priority * self.aging, request.arrival)

    def _queue(self, request: R) -> None:
        insort(self._waiting, request, key=self._turn)

    def _shrink(self, now: float) -> list[R]:
        """Evict the least claims where fewer rows exist than run."""
        surplus = len(self._running) - self.limit.rows
        victims = self._by_claim(self._running)[: max(0, surplus)]
        for victim in victims:
            self._evict(victim, now)
        return victims

    def _make_room(self, request: R, exempt: Iterable[R]) -> list[R] | None:
        """Whom to evict so that ``request`` can run; None if it cannot run now."""
        spared = set(exempt)
        weaker = [r for r in self._running if r.claim < request.priority and r not in spared]
        return self._victims(weaker, lambda staying: self._fit(staying, request))

    def _victims(self, weaker: Iterable[R], fits: Callable[[Seq[R]], bool]) -> list[R] | None:
        """Whom of ``weaker`` to evict so that those who stay fit, nobody in vain; None where all of
        them are not enough, or nobody may be evicted."""
        staying, victims = list(self._running), list[R]()
        if fits(staying):
            return victims
        candidates = self._by_claim(weaker) if self.preemption else []
        while not fits(staying):
            if not candidates:
                return None
            victims.append(candidates.pop(0))
            staying.remove(victims[-1])
        # The least claims went first; whoever need not have gone, after all, stays.
        for victim in victims[::-1]:
            if fits([*staying, victim]):
                staying.append(victim)
                victims.remove(victim)
        return victims

    def _fit(self, staying: Seq[R], request: R) -> bool:
        together = [*staying, request]
        return len(together) <= self.limit.rows and self.budget.fits(
            [one.reserved for one in together], [one.guesses for one in together]
        )

    def _evict(self, victim: R, now: float) -> None:
        self._running.remove(victim)
        victim.preempt(now)
        self.preempted += 1
        self._queue(victim)

    @staticmethod
    def _by_claim(requests: Iterable[R]) -> list[R]:
        """Least claim first; among equals the latest arrival, which loses least."""
        return sorted(requests, key=lambda r: (r.claim, -r.arrival))
