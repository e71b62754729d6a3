"""``Traffic``: what the engine does and has done, as it tells its listeners.

Sums since the start, and a window of the last seconds for what people watch. It is filled in the
worker's thread, once a step, and read by anybody.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mlx_spec.events import (
    EngineStarted,
    ErrorHappened,
    Event,
    FirstToken,
    MemoryRanOut,
    RequestFinished,
    RequestPreempted,
    StepDone,
)
from mlx_spec.metrics.distribution import Gaps

WINDOW = 5.0  # seconds
_LATELY = 1024  # first tokens and gaps that percentiles are of
_ENDS = 64  # requests from whose ends it is told how fast they end


@dataclass(frozen=True)
class Lately:
    """Of the last seconds.

    Attributes:
        tokens_per_second: of all rows.
        drafted, accepted: draft tokens.
        draft_tokens_per_step: of all rows, a step that decoded.
    """

    tokens_per_second: float
    drafted: int
    accepted: int
    draft_tokens_per_step: float


class Traffic:
    """A listener of the engine.

    Args:
        clock: the engine's.

    Attributes:
        batch_size: most rows.
        ends: requests that ended, by how.
        steps: target passes that decoded.
        batched_steps: those with several rows.
        draft_steps: those with a draft.
        most_rows: in one step.
        prefix_hits: requests whose prompt's beginning was known.
        reused_tokens: tokens of those.
        preempted: times that a request lost its row.
        out_of_memory: steps that found none.
        failure: what went wrong last in a step, in the log's words.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.batch_size = 1
        self.ends: Counter[str] = Counter()
        self.steps = self.batched_steps = self.draft_steps = self.most_rows = 0
        self.prefix_hits = self.reused_tokens = self.preempted = 0
        self.out_of_memory = 0
        self.failure = ""
        self._recent: deque[StepDone] = deque()
        self._ended_at: deque[float] = deque(maxlen=_ENDS)
        self._ttft: deque[float] = deque(maxlen=_LATELY)
        self._itl: deque[float] = deque(maxlen=_LATELY)
        self._gaps = Gaps()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        with self._lock:
            if isinstance(event, StepDone):
                self._step(event)
            elif isinstance(event, FirstToken):
                self._ttft.append(event.ttft)
            elif isinstance(event, RequestFinished):
                self._finished(event)
            elif isinstance(event, RequestPreempted):
                self.preempted += 1
            elif isinstance(event, MemoryRanOut):
                self.out_of_memory += 1
            elif isinstance(event, ErrorHappened) and event.request_id is None:
                self.failure = f"{event.where}: {event.error}"
            elif isinstance(event, EngineStarted):
                self.batch_size = event.config["batching"]["batch_size"]

    def ttft_ms(self) -> dict[str, float | None]:
        """Percentiles of the time to first token, in ms."""
        return self._percentiles(self._ttft)

    def itl_ms(self) -> dict[str, float | None]:
        """Percentiles of the time between two tokens of a request, in ms."""
        return self._percentiles(self._itl)

    def lately(self) -> Lately:
        """Sums over the window."""
        with self._lock:
            self._forget_old()
            steps = list(self._recent)
        decoding = sum(step.rows > 0 for step in steps)
        drafted = sum(step.drafted for step in steps)
        return Lately(
            tokens_per_second=sum(step.tokens for step in steps) / WINDOW,
            drafted=drafted,
            accepted=sum(step.accepted for step in steps),
            draft_tokens_per_step=drafted / decoding if decoding else 0.0,
        )

    def ends_per_second(self) -> float:
        """How fast requests end lately; 0 where that is not known."""
        with self._lock:
            if len(self._ended_at) < 2:
                return 0.0
            return len(self._ended_at) / max(1e-3, self._clock() - self._ended_at[0])

    def _step(self, step: StepDone) -> None:
        self._recent.append(step)
        self._forget_old()
        self.batch_size = step.batch_size
        self.most_rows = max(self.most_rows, step.rows)
        self.steps += step.rows > 0
        self.batched_steps += step.rows > 1
        self.draft_steps += step.drafted > 0
        for gap, rows in self._gaps.of(step):
            self._itl.extend([gap] * rows)

    def _finished(self, event: RequestFinished) -> None:
        self.ends[event.reason] += 1
        self._ended_at.append(event.time)
        self._gaps.forget(event.request_id)
        self.prefix_hits += event.reused_tokens > 0
        self.reused_tokens += event.reused_tokens

    def _forget_old(self) -> None:
        oldest = self._clock() - WINDOW
        while self._recent and self._recent[0].time < oldest:
            self._recent.popleft()

    def _percentiles(self, values: Iterable[float]) -> dict[str, float | None]:
        with self._lock:
            order = sorted(values)
        if not order:
            return {"p50": None, "p95": None}
        last = len(order) - 1
        return {
            name: round(1000 * order[round(share * last)], 3)
            for name, share in (("p50", 0.5), ("p95", 0.95))
        }
