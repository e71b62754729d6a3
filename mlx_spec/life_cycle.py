"""The life of a request: seven states, and the only methods that change them.

                admit              start             finish
     WAITING ----------> PREFILLING ------> RUNNING --------> FINISHED
                          |      ^             |
                  preempt |      | admit       | preempt
                          v      |             |
                        PREEMPTED <------------+

     any of these four --- cancel --> CANCELLED      (nobody wants more)
     any of these four --- fail ----> FAILED         (this request alone cannot go on)

The scheduler admits and preempts; who uses a decoder alone has it do so. The decoder starts a row
when its prompt is in the cache, and finishes or fails it when its tokens say so (``Sequence``). The
engine cancels. Anything else raises: a request that ended twice, or decodes without a row, is a bug
that must not pass for a slow request.

No clock of its own: times are what callers say, in seconds of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from mlx_spec.errors import IllegalTransition
from mlx_spec.results import FinishReason


class RequestState(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


_ENDED = (RequestState.CANCELLED, RequestState.FAILED)
NEXT: dict[RequestState, tuple[RequestState, ...]] = {
    RequestState.WAITING: (RequestState.PREFILLING, *_ENDED),
    RequestState.PREFILLING: (RequestState.RUNNING, RequestState.PREEMPTED, *_ENDED),
    RequestState.RUNNING: (RequestState.FINISHED, RequestState.PREEMPTED, *_ENDED),
    RequestState.PREEMPTED: (RequestState.PREFILLING, *_ENDED),
    RequestState.FINISHED: (),
    RequestState.CANCELLED: (),
    RequestState.FAILED: (),
}
"""Which states may follow which."""


@dataclass(eq=False)
class LifeCycle:
    """State and times of a request, and what the scheduler knows of it.

    Attributes:
        request_id: unique among those that have not ended.
        priority: higher goes first.
        reserved: most tokens that it can come to hold in a slot.
        guesses: most of them that one step verifies beside its own.
        submitted, arrival: whether it was queued, and when.
        claim: while it holds a row, the claim that it was admitted with (``Scheduler``).
        ran: seconds that it held rows before it was preempted, over all times.
        admitted: when it first got a row; None until then.
        preemptions: times that it lost its row.
        first_token, last_token: when its tokens came; None until then.
        finish_reason: how it ended; None while it has not.
        error: why it failed, where that is how it ended.
    """

    request_id: str = field(default="", kw_only=True)
    priority: int = field(default=0, kw_only=True)
    reserved: int = field(default=0, init=False)
    guesses: int = field(default=0, init=False)
    arrival: float = field(default=0.0, init=False)
    claim: float = field(default=0.0, init=False)
    ran: float = field(default=0.0, init=False)
    admitted: float | None = field(default=None, init=False)
    preemptions: int = field(default=0, init=False)
    first_token: float | None = field(default=None, init=False)
    last_token: float | None = field(default=None, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: str | None = field(default=None, init=False)
    _state: RequestState = field(default=RequestState.WAITING, init=False)
    submitted: bool = field(default=False, init=False)
    _since: float = field(default=0.0, init=False)  # when it got its present row

    @property
    def state(self) -> RequestState:
        """Where it stands."""
        return self._state

    @property
    def holds_row(self) -> bool:
        """Whether it has a row: its prompt is being fed, or it decodes."""
        return self._state in (RequestState.PREFILLING, RequestState.RUNNING)

    @property
    def ended(self) -> bool:
        """Whether it is over, in whatever way."""
        return self.finish_reason is not None

    def submit(self, now: float, reserved: int) -> None:
        """It is queued, once in its life."""
        if self.submitted or self._state is not RequestState.WAITING:
            raise IllegalTransition(
                f"[{type(self).__name__}.submit] request {self.request_id!r} was queued before "
                f"and is {self._state.value}"
            )
        self.submitted, self.arrival, self.reserved = True, now, reserved

    def reserve(self, reserved: int) -> None:
        """It may come to hold so many tokens."""
        self.reserved = reserved

    def admit(self, now: float, claim: float = 0.0) -> None:
        """It gets a row; its prompt, or all that it has said, is fed next."""
        self._become(RequestState.PREFILLING, "admit")
        self._since, self.claim = now, claim
        if self.admitted is None:
            self.admitted = now

    def start(self) -> None:
        """All that must be fed is in the cache: it decodes."""
        self._become(RequestState.RUNNING, "start")

    def preempt(self, now: float) -> None:
        """It loses its row and will get another."""
        self._become(RequestState.PREEMPTED, "preempt")
        self.ran += now - self._since
        self.preemptions += 1

    def emitted(self, now: float) -> None:
        """Tokens of it were read from the device."""
        self.last_token = now
        if self.first_token is None:
            self.first_token = now

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """Its last token is known."""
        self._become(RequestState.FINISHED, "finish")
        self.finish_reason = reason

    def cancel(self) -> None:
        """Nobody wants more of it."""
        self._become(RequestState.CANCELLED, "cancel")
        self.finish_reason = "cancelled"

    def fail(self, error: str) -> None:
        """It cannot go on, and nobody else is to blame; ``error`` says why."""
        self._become(RequestState.FAILED, "fail")
        self.finish_reason, self.error = "error", error

    def _become(self, state: RequestState, method: str) -> None:
        if state not in NEXT[self._state]:
            raise IllegalTransition(
                f"[{type(self).__name__}.{method}] request {self.request_id!r} is "
                f"{self._state.value} and cannot become {state.value}"
            )
        self._state = state
