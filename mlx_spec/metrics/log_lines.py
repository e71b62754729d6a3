"""``LogLines``: from events to the lines of a performance log.

Kinds of lines, each with its ``kind`` and its time ``t`` in seconds since the log began:

- ``header``: first line of every file: machine, versions, models, options, number of the file;
- ``engine``: models and options of a further engine under the same log;
- ``inference``: the steps of about half a second, its ``seconds`` until ``t``: tok/s (tokens /
  ``seconds``), memory, acceptance, drafted and accepted of each drafter, draft length, rows, gaps
  between tokens (a histogram, see ``distribution``). They tile the time in which requests held
  rows (see ``window``);
- ``request``: an ended request: TTFT, TPOT, queue time, tokens, acceptance;
- ``stage``: a pipeline's stage: items/s, items, errors, time;
- ``error``: what failed, and where; ``event``: a preemption, or that memory ran out;
- ``end``: last line of a run that was closed: totals, and lines lost.

It owns no file and no thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from mlx_spec.events import (
    EngineStarted,
    ErrorHappened,
    Event,
    MemoryRanOut,
    RequestFinished,
    RequestPreempted,
    StageDone,
    StepDone,
)
from mlx_spec.metrics.distribution import Gaps
from mlx_spec.metrics.window import StepWindow

FORMAT = 1
"""Raised when older readers would misread what is written."""

Line: TypeAlias = dict[str, Any]


class LogLines:
    """The lines of one run.

    Args:
        header: what is known before the first event.
        origin: when the log began, in seconds of ``time.perf_counter``.
        interval: seconds that one ``inference`` line covers.

    Attributes:
        header: for files that begin now; replaced, never changed.
    """

    def __init__(self, header: Line, origin: float, interval: float) -> None:
        self.header = {**header, "models": {}, "config": {}}
        self._origin, self._interval = origin, interval
        self._window: StepWindow | None = None
        self._covered = float("-inf")  # until when windows were written
        self._gaps = Gaps()
        self._totals = {"requests": 0, "tokens": 0, "drafted": 0, "accepted": 0, "errors": 0}
        self._begun = False

    def of(self, event: Event) -> Iterator[Line]:
        """The lines that an event completes."""
        if isinstance(event, StepDone):
            yield from self._step(event)
        elif isinstance(event, EngineStarted):
            yield from self._engine(event)
        elif isinstance(event, RequestFinished):
            yield self._request(event)
        elif isinstance(event, StageDone):
            yield self._stage(event)
        elif isinstance(event, ErrorHappened):
            self._totals["errors"] += 1
            fields = {"where": event.where, "error": event.error, "id": event.request_id}
            yield self._line("error", event.time, fields)
        elif isinstance(event, RequestPreempted):
            fields = {"event": "preempted", "id": event.request_id}
            yield self._line("event", event.time, fields)
        elif isinstance(event, MemoryRanOut):
            own = {"event": "out of memory", "id": event.request_id, "rows": event.rows}
            yield self._line("event", event.time, own)

    def old(self, now: float) -> Iterator[Line]:
        """Nothing came for a while: what was counted until then."""
        if self._window is not None and now - self._window.start >= self._interval:
            yield from self._flush()

    def end(self, now: float, lost: int) -> Iterator[Line]:
        """The last lines; none where there were none before."""
        yield from self._flush()
        if self._begun:
            yield self._line("end", now, {**self._totals, "lost": lost})

    def _step(self, step: StepDone) -> Iterator[Line]:
        if self._window is not None and step.began - self._window.end >= self._interval:
            yield from self._flush()  # a pause is no part of a window
        if self._window is None:
            self._window = StepWindow(step, self._covered)
        self._window.add(step, self._gaps.of(step))
        self._totals["tokens"] += step.tokens
        self._totals["drafted"] += step.drafted
        self._totals["accepted"] += step.accepted
        if self._window.end - self._window.start >= self._interval:
            yield from self._flush()

    def _flush(self) -> Iterator[Line]:
        if self._window is not None:
            line, self._covered = self._window.line(self._origin), self._window.end
            self._window = None
            self._begun = True
            yield line

    def _request(self, event: RequestFinished) -> Line:
        self._gaps.forget(event.request_id)
        self._totals["requests"] += 1
        tpot = event.tpot
        fields = {
            "id": event.request_id,
            "reason": event.reason,
            "prompt_tokens": event.prompt_tokens,
            "generation_tokens": event.generation_tokens,
            "ttft": None if event.ttft is None else round(event.ttft, 5),
            "tpot": None if tpot is None else round(tpot, 6),
            "duration": round(event.duration, 4),
            "queue_time": round(event.queue_time, 5),
            "drafted": event.drafted,
            "accepted": event.accepted,
            "acceptance": round(event.accepted / event.drafted, 4) if event.drafted else None,
            "drafters": {name: list(own) for name, own in event.drafters.items()},
            "verify_steps": event.verify_steps,
            "reused_tokens": event.reused_tokens,
        }
        return self._line("request", event.time, fields)

    def _engine(self, event: EngineStarted) -> Iterator[Line]:
        known = {"models": dict(event.models), "config": dict(event.config)}
        first = not self._begun and not self.header["models"]
        # A copy: the lines before this one go under the header that there was.
        self.header = {**self.header, **known}
        if not first:
            yield self._line("engine", event.time, known)

    def _stage(self, event: StageDone) -> Line:
        fields = {
            "stage": event.stage,
            "items": event.items,
            "seconds": round(event.seconds, 4),
            "items_s": round(event.items / event.seconds, 3) if event.seconds > 0 else None,
            "errors": event.errors,
            "details": dict(event.details),
        }
        return self._line("stage", event.time, fields)

    def _line(self, kind: str, moment: float, fields: Mapping[str, Any]) -> Line:
        self._begun = True
        return {"kind": kind, "t": round(moment - self._origin, 4), **fields}
