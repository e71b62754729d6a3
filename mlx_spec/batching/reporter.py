"""``EventReporter``: what the engine did, as events for its listeners.

It only reads the engine's parts; the engine asks for its truth value first, so that without
listeners no event is made. Per-step figures are differences of the decoder's meter. Short steps are
told a few at a time, in order, and before anything else that happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import asdict
from operator import attrgetter, sub
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.batching.scheduler import Scheduler
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.flight import StepOutput
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.events import (
    EngineStarted,
    ErrorHappened,
    Event,
    EventFeed,
    FirstToken,
    Listener,
    MemoryRanOut,
    PromptProgress,
    RequestAdmitted,
    RequestFinished,
    RequestPreempted,
    RequestSubmitted,
    StepDone,
)
from mlx_spec.sequence import Sequence

# Seconds of steps that are told together. Right after a step all code and data are cold, and an
# event costs several times what it does in a burst; a step of 2 ms would feel that.
_BURST = 0.025

# The meter at one moment, in one call.
_totals = attrgetter(
    "steps",
    "seconds",
    "prompt_seconds",
    "prompt_tokens",
    "row_steps",
    "tokens",
    "drafted",
    "accepted",
    "computed",
)


class _Step(NamedTuple):
    """What is noted of a step when it is done."""

    time: float
    began: float
    ended: float
    totals: Any
    running: int
    waiting: int
    batch_size: int
    draft_length: int
    memory: int
    emitted: Seq[tuple[Sequence, bool]]  # requests, and whether their first token is among it
    drafts: Seq[tuple[str, int, int]]  # drafter, drafted, accepted of each row


class EventReporter:
    """Tells listeners what one engine does.

    Args:
        listeners: who wants to hear.
        clock: the engine's.
    """

    def __init__(self, listeners: Iterable[Listener], clock: Callable[[], float]) -> None:
        self._feed = EventFeed(listeners)
        self._clock = clock
        self._before = _totals(StepMeter())
        self._steps: list[_Step] = []  # noted, not told yet
        self._progress = (0, 0)
        self._since: float | None = None  # where the next step's time begins; None while idle

    def __bool__(self) -> bool:
        return bool(self._feed)

    def started(
        self,
        models: dict[str, Any],
        batching: BatchingConfig,
        speculation: SpeculationConfig,
        limit: int,
    ) -> None:
        """The engine is ready; ``limit`` is what K/V may take, in bytes."""
        self._publish(
            EngineStarted(
                self._clock(),
                {role: _describe(model) for role, model in models.items() if model is not None},
                {
                    "batching": asdict(batching),
                    "speculation": asdict(speculation),
                    "kv_limit": limit,
                },
            )
        )

    def submitted(self, request: Sequence) -> None:
        """A request was queued."""
        self._publish(
            RequestSubmitted(
                request.arrival,
                request.request_id,
                len(request.prompt),
                request.max_new_tokens,
                request.priority,
            )
        )

    def moved(self, preempted: Iterable[Sequence], admitted: Iterable[Sequence]) -> None:
        """Requests lost or got rows."""
        now = self._clock()
        if self._since is None:
            self._since = now
        for request in preempted:
            self._publish(RequestPreempted(now, request.request_id))
        for request in admitted:
            self._publish(RequestAdmitted(now, request.request_id, request.preemptions > 0))

    def failed(self, where: str, error: str, request_id: str | None = None) -> None:
        """Something went wrong; whoever called hears of it by the exception itself."""
        self._publish(ErrorHappened(self._clock(), where, error, request_id))

    def began_anew(self, preempted: Seq[Sequence], victim: Sequence) -> None:
        """A step found no memory: one request was given up, the others wait for rows."""
        self._publish(MemoryRanOut(self._clock(), 1 + len(preempted), victim.request_id))
        self.moved(preempted, [])
        self.finished(victim)

    def stepped(
        self,
        decoder: SpeculativeDecoder,
        scheduler: Scheduler[Sequence],
        outputs: Seq[StepOutput],
        ended: int,
    ) -> None:
        """A step is done: first tokens, the step itself, and ends, of which there were so many.

        Only what will have changed by then is noted now; the events are made in bursts.
        """
        now, ended_at = self._clock(), decoder.ready
        began = ended_at if self._since is None else min(self._since, ended_at)
        idle = not scheduler.active and not scheduler.backlog
        self._since = None if idle else ended_at
        self._steps.append(
            _Step(
                now,
                began,
                ended_at,
                _totals(decoder.meter),
                scheduler.active + ended,
                scheduler.backlog,
                scheduler.limit.rows,
                decoder.draft_length,
                mx.get_active_memory(),
                [(o.sequence, len(o.tokens) == len(o.sequence.tokens) > 0) for o in outputs],
                [(o.source, o.drafted, o.accepted) for o in outputs if o.drafted],
            )
        )
        if ended or now - self._steps[0].time >= _BURST:
            self._flush()
        progress = decoder.prompt_progress
        if progress != self._progress:
            self._progress = progress
            self._publish(PromptProgress(now, *progress))
        if ended:
            for output in outputs:
                if output.sequence.ended:
                    self.finished(output.sequence)

    def _publish(self, event: Event) -> None:
        """Tell an event, after the steps that came before it."""
        self._flush()
        self._feed.publish(event)

    def _flush(self) -> None:
        noted, self._steps = self._steps, []
        for step in noted:
            self._publish_step(step)

    def _publish_step(self, step: _Step) -> None:
        sums = map(sub, step.totals, self._before)
        steps, seconds, prefill_seconds, prompt_tokens, rows, *given, computed = sums
        tokens, drafted, accepted = given
        self._before = step.totals
        for request, first in step.emitted:
            if first:
                ttft = (request.first_token or step.time) - request.arrival
                self._feed.publish(FirstToken(step.time, request.request_id, ttft))
        self._feed.publish(
            StepDone(
                time=step.time,
                began=step.began,
                ended=step.ended,
                seconds=seconds,
                prefill_seconds=prefill_seconds,
                prompt_tokens=prompt_tokens,
                rows=rows,
                running=step.running,
                waiting=step.waiting,
                batch_size=step.batch_size,
                draft_length=step.draft_length if steps else 0,
                tokens=tokens,
                drafted=drafted,
                accepted=accepted,
                memory=step.memory,
                emitted=tuple(request.request_id for request, _ in step.emitted),
                drafters=_by_drafter(step.drafts),
                computed=computed,
            )
        )

    def idle(self) -> None:
        """No request is left, though no step ended: the last one was cancelled."""
        self._since = None

    def finished(self, request: Sequence) -> None:
        """A request has ended, by itself or because it was cancelled."""
        now = self._clock()
        begun = now if request.admitted is None else request.admitted
        first, last = request.first_token, request.last_token
        self._publish(
            RequestFinished(
                time=now,
                request_id=request.request_id,
                reason=request.finish_reason or "cancelled",
                prompt_tokens=len(request.prompt),
                generation_tokens=len(request.tokens),
                ttft=None if first is None else first - request.arrival,
                duration=(now if last is None else last) - request.arrival,
                queue_time=begun - request.arrival,
                drafted=request.drafted,
                accepted=request.accepted,
                verify_steps=request.steps,
                reused_tokens=request.reused,
                drafters={
                    name: (own.drafted, own.accepted) for name, own in request.drafters.items()
                },
            )
        )


def _by_drafter(drafts: Iterable[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    """Drafted and accepted of each drafter."""
    sums: dict[str, tuple[int, int]] = {}
    for name, drafted, accepted in drafts:
        before = sums.get(name, (0, 0))
        sums[name] = (before[0] + drafted, before[1] + accepted)
    return sums


def _describe(model: Any) -> dict[str, Any]:
    """What a model is, as far as it says so itself."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    return {
        "type": getattr(model, "model_type", type(model).__name__),
        "layers": len(getattr(model, "layers", ())),
        "parameters": sum(array.size for array in arrays),
        "bytes": sum(array.nbytes for array in arrays),
    }
