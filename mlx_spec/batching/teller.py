"""``Teller``: from what the engine did to the events that its listeners hear.

It only reads the engine's parts; the engine asks for its truth value first, so that without
listeners no event is made. Per-step figures are differences of the decoder's meter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import asdict
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.batching.scheduler import Scheduler
from mlx_spec.batching.track import Track
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.meter import StepMeter
from mlx_spec.events import (
    EngineStarted,
    ErrorHappened,
    EventFeed,
    FirstToken,
    Listener,
    RequestAdmitted,
    RequestFinished,
    RequestPreempted,
    RequestSubmitted,
    StepDone,
)
from mlx_spec.results import GenerationChunk


class _Totals(NamedTuple):
    """The meter at one moment."""

    steps: int
    seconds: float
    prompt_seconds: float
    prompt_tokens: int
    row_steps: int
    tokens: int
    drafted: int
    accepted: int


def _totals(meter: StepMeter) -> _Totals:
    return _Totals(
        meter.steps,
        meter.seconds,
        meter.prompt_seconds,
        meter.prompt_tokens,
        meter.row_steps,
        meter.tokens,
        meter.drafted,
        meter.accepted,
    )


class Teller:
    """Tells listeners what one engine does.

    Args:
        listeners: who wants to hear.
        clock: the engine's.
    """

    def __init__(self, listeners: Iterable[Listener], clock: Callable[[], float]) -> None:
        self._feed = EventFeed(listeners)
        self._clock = clock
        self._before = _totals(StepMeter())

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
        self._feed.tell(
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

    def submitted(self, track: Track) -> None:
        """A request was queued."""
        request, sequence = track.request, track.sequence
        self._feed.tell(
            RequestSubmitted(
                request.arrival,
                request.request_id,
                len(sequence.prompt),
                sequence.max_new_tokens,
                request.priority,
            )
        )

    def moved(self, preempted: Iterable[Track], admitted: Iterable[Track]) -> None:
        """Requests lost or got rows; asked before ``admitted`` times are set."""
        now = self._clock()
        for track in preempted:
            self._feed.tell(RequestPreempted(now, track.request.request_id))
        for track in admitted:
            again = track.admitted is not None
            self._feed.tell(RequestAdmitted(now, track.request.request_id, again))

    def failed(self, where: str, error: BaseException, request_id: str | None = None) -> None:
        """Something went wrong; whoever called hears of it by the exception itself."""
        self._feed.tell(ErrorHappened(self._clock(), where, repr(error), request_id))

    def stepped(
        self,
        decoder: SpeculativeDecoder,
        scheduler: Scheduler,
        gains: Seq[tuple[Track, list[GenerationChunk]]],
    ) -> None:
        """A step is done: first tokens, ends, and the step itself."""
        now, tell = self._clock(), self._feed.tell
        before, after = self._before, _totals(decoder.meter)
        self._before = after
        emitted, ended = [], []
        for track, chunks in gains:
            request_id = track.request.request_id
            emitted.append(request_id)
            # All that it has came in this step.
            if len(track.sequence.tokens) == len(chunks):
                tell(FirstToken(now, request_id, (track.first or now) - track.submitted))
            if track.done:
                ended.append(track)
        tell(
            StepDone(
                time=now,
                seconds=after.seconds - before.seconds,
                prefill_seconds=after.prompt_seconds - before.prompt_seconds,
                prompt_tokens=after.prompt_tokens - before.prompt_tokens,
                rows=after.row_steps - before.row_steps,
                running=len(scheduler.running) + len(ended),
                waiting=scheduler.backlog,
                batch_size=scheduler.rows,
                draft_length=decoder.draft_length if after.steps > before.steps else 0,
                tokens=after.tokens - before.tokens,
                drafted=after.drafted - before.drafted,
                accepted=after.accepted - before.accepted,
                memory=mx.get_active_memory(),
                emitted=tuple(emitted),
            )
        )
        for track in ended:
            self.finished(track)

    def finished(self, track: Track) -> None:
        """A request has ended, by itself or because it was cancelled."""
        sequence, now = track.sequence, self._clock()
        begun = now if track.admitted is None else track.admitted
        self._feed.tell(
            RequestFinished(
                time=now,
                request_id=track.request.request_id,
                reason=sequence.finish_reason or "cancelled",
                prompt_tokens=len(sequence.prompt),
                generation_tokens=len(sequence.tokens),
                ttft=None if track.first is None else track.first - track.submitted,
                duration=(now if track.last is None else track.last) - track.submitted,
                queue_time=begun - track.submitted,
                drafted=sequence.drafted,
                accepted=sequence.accepted,
                verify_steps=sequence.steps,
                reused_tokens=sequence.reused,
            )
        )


def _describe(model: Any) -> dict[str, Any]:
    """What a model is, as far as it says so itself."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    return {
        "type": getattr(model, "model_type", type(model).__name__),
        "layers": len(getattr(model, "layers", ())),
        "parameters": sum(array.size for array in arrays),
        "bytes": sum(array.nbytes for array in arrays),
    }
