"""Who runs next: queues, priorities, preemption. No mlx, no clock of its own, no thread.

The scheduler knows requests by their priority, arrival and the tokens they may come to hold; a
``Budget`` says which of them fit together. At each step boundary the caller asks for a ``Plan``
with the time of its own clock, so that waiting times are tested without sleeping.

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
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from mlx_spec.errors import InvalidRequest


class RequestState(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Request:
    """What the scheduler knows of a request.

    Attributes:
        request_id: unique among those not finished.
        tokens: most tokens it can come to hold, prompt and output.
        priority: higher goes first.
        arrival: when it was submitted, in seconds of the caller's clock.
        state: changed by the scheduler only.
        claim: while running, the claim it was admitted with.
        admitted: when it got its present or last row.
        ran: seconds that it held a row before it was preempted, over all times.
    """

    request_id: str
    tokens: int
    priority: int = 0
    arrival: float = 0.0
    state: RequestState = RequestState.WAITING
    claim: float = 0.0
    admitted: float = 0.0
    ran: float = 0.0


class Budget(Protocol):
    """Which requests fit into memory together; more or longer ones never fit better."""

    def fits(self, tokens: Seq[int]) -> bool:
        """Whether rows that may come to hold these numbers of tokens fit together."""
        ...

    def explain(self, tokens: Seq[int]) -> str:
        """The numbers behind a refusal."""
        ...


@dataclass(frozen=True)
class Plan:
    """What to do at a step boundary: first preempt, then admit."""

    preempt: list[Request] = field(default_factory=list)
    admit: list[Request] = field(default_factory=list)


class Scheduler:
    """Queues of requests over a number of rows and a memory budget.

    Args:
        rows: most requests that run together.
        timeout: while nothing runs, the longest wait for a full batch, in seconds.
        budget: which requests fit together.
        preemption: whether a more urgent request may take a running one's place.
        aging: seconds of waiting that count as one level of priority.
    """

    def __init__(
        self,
        rows: int,
        timeout: float,
        budget: Budget,
        *,
        preemption: bool = True,
        aging: float = 10.0,
    ) -> None:
        self.rows = rows
        self.timeout = timeout
        self.budget = budget
        self.preemption = preemption
        self.aging = aging
        self.preempted = 0  # evictions, over all time
        self._waiting: list[Request] = []  # sorted by _turn
        self._running: list[Request] = []

    @property
    def waiting(self) -> list[Request]:
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
    def running(self) -> list[Request]:
        """Requests that hold a row."""
        return list(self._running)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it could not run even alone.
        """
        if not self.budget.fits([request.tokens]):
            raise InvalidRequest(
                f"[Scheduler.submit] request {request.request_id} can never fit: "
                f"{self.budget.explain([request.tokens])}"
            )
        request.state = RequestState.WAITING
        self._queue(request)

    def finish(self, request: Request) -> None:
        """A running request has reached its end."""
        self._running.remove(request)
        request.state = RequestState.FINISHED

    def cancel(self, request: Request) -> None:
        """A request is wanted no more, wherever it stands. Doing it twice does no harm."""
        for queue in (self._waiting, self._running):
            if request in queue:
                queue.remove(request)
                request.state = RequestState.CANCELLED

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

    def plan(self, now: float, *, hurry: bool = False) -> Plan:
        """Decide who runs from this boundary on; states change accordingly.

        Args:
            now: the caller's clock, in seconds.
            hurry: do not wait for a batch to fill (nothing more will come).
        """
        if not hurry and not self.due(now):
            return Plan()
        preempted = self._shrink(now)
        admitted: list[Request] = []
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
            request.state, request.admitted = RequestState.RUNNING, now
            request.claim = self._claim(request, now)
            admitted.append(request)
        return Plan(preempted, admitted)

    def _full(self) -> bool:
        """Whether nothing more could join what waits, not even a request of one token."""
        if len(self._waiting) >= self.rows:
            return True
        return not self.budget.fits([request.tokens for request in self._waiting] + [1])

    def _claim(self, request: Request, now: float) -> float:
        waited = now - request.arrival - request.ran
        return request.priority + (waited / self.aging if self.aging > 0 else 0.0)

    def _turn(self, request: Request) -> tuple[float, float]:
        """Sorts waiting requests: the greatest claim first, then the earliest arrival.

        In seconds, less what is the same for all of them at any time.
        """
        if self.aging <= 0:
            return (-request.priority, request.arrival)
        return (request.arrival + request.ran - request.priority * self.aging, request.arrival)

    def _queue(self, request: Request) -> None:
        insort(self._waiting, request, key=self._turn)

    def _shrink(self, now: float) -> list[Request]:
        """Evict the least claims where fewer rows exist than run."""
        surplus = len(self._running) - self.rows
        victims = self._by_claim(self._running)[: max(0, surplus)]
        for victim in victims:
            self._evict(victim, now)
        return victims

    def _make_room(self, request: Request, exempt: Iterable[Request]) -> list[Request] | None:
        """Whom to evict so that ``request`` can run; None if it cannot run now."""
        if self._fit(self._running, request):
            return []
        if not self.preemption:
            return None
        staying = list(self._running)
        victims: list[Request] = []
        spared = set(exempt)
        weaker = [r for r in staying if r.claim < request.priority and r not in spared]
        candidates = self._by_claim(weaker)
        while not self._fit(staying, request):
            if not candidates:
                return None
            victim = candidates.pop(0)
            victims.append(victim)
            staying.remove(victim)
        # The least claims went first; whoever need not have gone, after all, stays.
        for victim in victims[::-1]:
            if self._fit([*staying, victim], request):
                staying.append(victim)
                victims.remove(victim)
        return victims

    def _fit(self, staying: Seq[Request], request: Request) -> bool:
        tokens = [other.tokens for other in staying] + [request.tokens]
        return len(tokens) <= self.rows and self.budget.fits(tokens)

    def _evict(self, victim: Request, now: float) -> None:
        self._running.remove(victim)
        victim.state = RequestState.PREEMPTED
        victim.ran += now - victim.admitted
        self.preempted += 1
        self._queue(victim)

    @staticmethod
    def _by_claim(requests: Iterable[Request]) -> list[Request]:
        """Least claim first; among equals the latest arrival, which loses least."""
        return sorted(requests, key=lambda r: (r.claim, -r.arrival))
