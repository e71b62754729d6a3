"""``MetricsRecorder``: a listener that keeps a run's figures in memory and sums them up.

Example::

    recorder = MetricsRecorder()
    with BatchedMLXGenerator(model, tokenizer, listeners=[recorder]) as generator:
        generator.generate(prompts)
    print(recorder.summary(ttft_limit=0.5, tpot_limit=0.05))

It keeps the latest requests and gaps only, so that it may listen for days.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_spec.events import (
    ErrorHappened,
    Event,
    RequestFinished,
    RequestPreempted,
    RequestSubmitted,
    StepDone,
)
from mlx_spec.metrics.distribution import Gaps, Percentiles


@dataclass(frozen=True)
class Goodput:
    """What was served within given limits.

    Attributes:
        requests: ended requests that met the limits.
        share: of the requests that ended by themselves.
        per_second: requests within the limits, per second of the run.
    """

    requests: int
    share: float
    per_second: float

    @classmethod
    def of(
        cls,
        latencies: list[tuple[float | None, float | None]],
        seconds: float,
        ttft_limit: float | None,
        tpot_limit: float | None,
    ) -> Goodput:
        """From each request's TTFT and TPOT; one without a first token meets no limit."""
        good = sum(
            ttft is not None
            and (ttft_limit is None or ttft <= ttft_limit)
            and (tpot_limit is None or tpot is None or tpot <= tpot_limit)
            for ttft, tpot in latencies
        )
        share = good / len(latencies) if latencies else 0.0
        return cls(good, share, good / seconds if seconds > 0 else 0.0)


@dataclass(frozen=True)
class MetricsSummary:
    """A run in figures; times in seconds.

    Attributes:
        seconds: from the first submission or step to the last event.
        requests: ended, over all time; ``reasons`` says how.
        preempted, errors: how often.
        tokens: generated; ``throughput`` is tokens per second of the run.
        acceptance_rate: accepted / drafted tokens; 0 when nothing was drafted.
        mean_acceptance_length: tokens per verify pass and row; 1 is plain decoding.
        draft_length, occupancy: means over the steps; occupancy is rows / batch size.
        peak_memory: most bytes that MLX held at the end of a step.
        ttft, itl, tpot, queue_time: over the latest requests.
        goodput: under the limits that were asked for.
    """

    seconds: float
    requests: int
    reasons: Mapping[str, int]
    preempted: int
    errors: int
    tokens: int
    throughput: float
    acceptance_rate: float
    mean_acceptance_length: float
    draft_length: float
    occupancy: float
    peak_memory: int
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    queue_time: Percentiles
    goodput: Goodput


@dataclass
class _Sums:
    """Over all steps."""

    steps: int = 0
    row_steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_lengths: int = 0
    occupancy: float = 0.0
    peak_memory: int = 0
    preempted: int = 0
    errors: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, step: StepDone) -> None:
        self.tokens += step.tokens
        self.drafted += step.drafted
        self.accepted += step.accepted
        self.peak_memory = max(self.peak_memory, step.memory)
        if step.rows:
            self.steps += 1
            self.row_steps += step.rows
            self.draft_lengths += step.draft_length
            self.occupancy += step.rows / step.batch_size


class MetricsRecorder:
    """Listens, and sums up whenever it is asked, from any thread.

    Args:
        keep: most requests and most gaps between tokens that are kept for percentiles.
    """

    def __init__(self, keep: int = 100_000) -> None:
        self._requests: deque[RequestFinished] = deque(maxlen=keep)
        self._itl: deque[tuple[float, int]] = deque(maxlen=keep)
        self._gaps = Gaps()
        self._sums = _Sums()
        self._first: float | None = None
        self._last = 0.0
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        with self._lock:
            if isinstance(event, StepDone):
                self._note(event.began)
                self._sums.add(event)
                self._itl.extend(self._gaps.of(event))
            elif isinstance(event, RequestFinished):
                self._gaps.forget(event.request_id)
                self._requests.append(event)
                self._sums.reasons[event.reason] += 1
            elif isinstance(event, RequestPreempted):
                self._sums.preempted += 1
            elif isinstance(event, ErrorHappened):
                self._sums.errors += 1
            elif not isinstance(event, RequestSubmitted):
                return
            self._note(event.time)

    def _note(self, moment: float) -> None:
        self._first = moment if self._first is None else min(self._first, moment)
        self._last = max(self._last, moment)

    @property
    def requests(self) -> list[RequestFinished]:
        """The latest ended requests, in the order of their ends."""
        with self._lock:
            return list(self._requests)

    def summary(
        self, *, ttft_limit: float | None = None, tpot_limit: float | None = None
    ) -> MetricsSummary:
        """The run so far.

        Args:
            ttft_limit, tpot_limit: what a request must meet to count as goodput, in seconds.
        """
        with self._lock:
            sums, requests = self._sums, list(self._requests)
            itl: Counter[float] = Counter()
            for gap, rows in self._itl:
                itl[gap] += rows
            seconds = 0.0 if self._first is None else self._last - self._first
            # Cancelled ones were not failed by us, nor served.
            ended = [r for r in requests if r.reason in ("stop", "length", "error")]
            return MetricsSummary(
                seconds=seconds,
                requests=sum(sums.reasons.values()),
                reasons=dict(sums.reasons),
                preempted=sums.preempted,
                errors=sums.errors,
                tokens=sums.tokens,
                throughput=sums.tokens / seconds if seconds > 0 else 0.0,
                acceptance_rate=sums.accepted / sums.drafted if sums.drafted else 0.0,
                mean_acceptance_length=sums.tokens / sums.row_steps if sums.row_steps else 0.0,
                draft_length=sums.draft_lengths / sums.steps if sums.steps else 0.0,
                occupancy=sums.occupancy / sums.steps if sums.steps else 0.0,
                peak_memory=sums.peak_memory,
                ttft=Percentiles.of(r.ttft for r in requests if r.ttft is not None),
                itl=Percentiles.of_counts(itl),
                tpot=Percentiles.of(r.tpot for r in requests if r.tpot is not None),
                queue_time=Percentiles.of(r.queue_time for r in requests),
                goodput=Goodput.of(
                    [(r.ttft, r.tpot) for r in ended], seconds, ttft_limit, tpot_limit
                ),
            )
