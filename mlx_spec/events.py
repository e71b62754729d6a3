"""What happened, as small records, and who is told: the feed that metrics and logs live on.

The engine tells its listeners at step boundaries only, in its own thread, and of short steps a few
at a time. A listener is any
callable of one event; ``events.append`` of a list is one. Nothing is recorded where nobody
listens. A listener that raises is dropped with a warning: it must never end a batch.

Times are seconds of the engine's clock (``time.perf_counter``); only differences mean something.
This module imports nothing of ours but ``results`` and may be imported by all.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from mlx_spec.results import FinishReason


@dataclass(frozen=True)
class EngineStarted:
    """An engine is about to take requests.

    Attributes:
        time: when.
        models: role (``target``, ``draft``) -> what is known of the model.
        config: the options as plain data.
    """

    time: float
    models: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class RequestSubmitted:
    """A request was queued."""

    time: float
    request_id: str
    prompt_tokens: int
    max_tokens: int
    priority: int


@dataclass(frozen=True)
class RequestAdmitted:
    """A request got a row; ``again`` when it had one before and was preempted."""

    time: float
    request_id: str
    again: bool


@dataclass(frozen=True)
class RequestPreempted:
    """A running request must wait again."""

    time: float
    request_id: str


@dataclass(frozen=True)
class FirstToken:
    """A request's first token; ``ttft`` is the time since its submission, in seconds."""

    time: float
    request_id: str
    ttft: float


@dataclass(frozen=True)
class RequestFinished:
    """A request has ended; the figures are those of ``GenerationResult``.

    ``ttft`` is None where no token came. Of ``drafters`` there are drafted and accepted.
    """

    time: float
    request_id: str
    reason: FinishReason
    prompt_tokens: int
    generation_tokens: int
    ttft: float | None
    duration: float
    queue_time: float
    drafted: int
    accepted: int
    verify_steps: int
    reused_tokens: int
    drafters: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None where there is no second."""
        if self.ttft is None or self.generation_tokens < 2:
            return None
        return (self.duration - self.ttft) / (self.generation_tokens - 1)


@dataclass(frozen=True)
class PromptProgress:
    """Prompts are being read; told after every chunk of them, the last one included.

    Attributes:
        time: when.
        fed: their tokens that are in the cache, reused ones included.
        total: all their tokens. ``fed == total`` once nobody's prompt is being read any more; the
            total grows where further requests get rows meanwhile.
    """

    time: float
    fed: int
    total: int


class StepDone(NamedTuple):
    """One step of the engine, over all rows; a tuple because one is made at every step.

    Attributes:
        time: when its tokens were handed out.
        began, ended: its share of the time in which requests held rows. It ends when the results
            were read and begins where the step before it ended, or with the first admission
            after a time without requests. Building the next step ahead falls into that one's.
        seconds: of the verify pass; 0 while only prompts were fed.
        prefill_seconds: spent on prompts before it.
        prompt_tokens: that were read, reused ones included.
        rows: rows that decoded.
        running, waiting: requests, those being fed included in ``running``.
        batch_size: most rows.
        draft_length: K, the longest of the rows'.
        tokens: emitted, over all rows.
        drafted, accepted: draft tokens verified, and accepted.
        memory: bytes that MLX holds now.
        emitted: ids of the requests that gained tokens.
        drafters: drafted and accepted of each drafter, by name.
        computed: tokens that the target's pass took, those for nobody included.
    """

    time: float
    began: float
    ended: float
    seconds: float
    prefill_seconds: float
    prompt_tokens: int
    rows: int
    running: int
    waiting: int
    batch_size: int
    draft_length: int
    tokens: int
    drafted: int
    accepted: int
    memory: int
    emitted: tuple[str, ...] = ()
    drafters: Mapping[str, tuple[int, int]] = {}
    computed: int = 0


@dataclass(frozen=True)
class StageDone:
    """A stage of a pipeline has handled some records, since it began or since its last event."""

    time: float
    stage: str
    items: int
    seconds: float
    errors: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorHappened:
    """Something failed: ``where`` names the operation, ``request_id`` the request, if one did."""

    time: float
    where: str
    error: str
    request_id: str | None = None


@dataclass(frozen=True)
class MemoryRanOut:
    """A step of ``rows`` found no memory: ``request_id`` was given up, the others begin anew."""

    time: float
    rows: int
    request_id: str


Event: TypeAlias = (
    EngineStarted
    | RequestSubmitted
    | RequestAdmitted
    | RequestPreempted
    | FirstToken
    | PromptProgress
    | RequestFinished
    | StepDone
    | StageDone
    | ErrorHappened
    | MemoryRanOut
)


class Listener(Protocol):
    """Takes events in the thread that runs the steps, so it must be quick and never wait."""

    def __call__(self, event: Event, /) -> object:
        """Take one event."""
        ...


class EventFeed:
    """The listeners of one engine or pipeline.

    Truth value: whether anybody listens. Who publishes events asks first, so that a feed without
    listeners costs nothing::

        if feed:
            feed.publish(StepDone(...))
    """

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def publish(self, event: Event) -> None:
        """Tell everybody; drop whoever raises."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:  # foreign code
                self._listeners.remove(listener)
                _warn(listener, event, error)


def _warn(listener: Listener, event: Event, error: Exception) -> None:
    """Say that a listener was dropped, even where warnings are errors."""
    name = getattr(listener, "__qualname__", type(listener).__qualname__)
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(
            f"[EventFeed] {name} failed on {type(event).__name__} and hears no more: {error!r}",
            RuntimeWarning,
            stacklevel=3,
        )
