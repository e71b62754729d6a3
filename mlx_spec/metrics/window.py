"""``StepWindow``: the steps between two lines of a log, as sums.

A line a step would be written a hundred times a second; a line every half second tells as much.
Windows tile the time in which requests held rows: each begins where the one before it ended, or
after a pause, and ends with its last step, so the rate of a window is never above that of its
fastest step.
"""

from __future__ import annotations

from typing import Any

from mlx_spec.events import StepDone
from mlx_spec.metrics.distribution import bucket


class StepWindow:
    """Sums over consecutive steps; cheap enough to be filled inside them.

    Attributes:
        start: when the first of them began, in seconds of the engine's clock.
        end: when the last of them ended; never before ``start``.

    Args:
        first: the first step.
        covered: where the window before it ended; of another engine's step under the same log
            only what came later counts as time.
    """

    def __init__(self, first: StepDone, covered: float) -> None:
        self.start = self.end = max(first.began, covered)
        self._last = first
        self._steps = self._tokens = self._drafted = self._accepted = 0
        self._prompt_tokens = self._rows = self._drafts = self._decoding = 0
        self._busy = self._prefill = self._slowest = self._longest = 0.0
        self._memory = 0
        self._gaps: dict[int, int] = {}
        self._drafters: dict[str, list[int]] = {}  # drafted and accepted

    def add(self, step: StepDone, gaps: list[tuple[float, int]]) -> None:
        """Count one step and the gaps between tokens that it closed."""
        self._last = step
        self.end = max(self.end, step.ended)
        self._longest = max(self._longest, step.ended - step.began)
        self._steps += 1
        self._tokens += step.tokens
        self._drafted += step.drafted
        self._accepted += step.accepted
        for name, (drafted, accepted) in step.drafters.items():
            sums = self._drafters.setdefault(name, [0, 0])
            sums[0] += drafted
            sums[1] += accepted
        self._prompt_tokens += step.prompt_tokens
        self._busy += step.seconds
        self._prefill += step.prefill_seconds
        self._slowest = max(self._slowest, step.seconds)
        self._memory = max(self._memory, step.memory)
        if step.rows:
            self._decoding += 1
            self._rows += step.rows
            self._drafts += step.draft_length
        for gap, rows in gaps:
            number = bucket(gap)
            self._gaps[number] = self._gaps.get(number, 0) + rows

    def line(self, origin: float) -> dict[str, Any]:
        """The window as a log line; times count from ``origin``."""
        last, decoding = self._last, max(1, self._decoding)
        seconds = self.end - self.start
        # Of several engines' steps a window may count little time or none; no step was faster.
        over = max(seconds, self._longest, 1e-6)
        return {
            "kind": "inference",
            "t": round(self.end - origin, 4),
            "seconds": round(seconds, 4),
            "steps": self._steps,
            "decode_seconds": round(self._busy, 4),
            "prefill_seconds": round(self._prefill, 4),
            "slowest_step": round(self._slowest, 5),
            "tokens": self._tokens,
            "tok_s": round(self._tokens / over, 2),
            "prompt_tokens": self._prompt_tokens,
            "drafted": self._drafted,
            "accepted": self._accepted,
            "acceptance": round(self._accepted / self._drafted, 4) if self._drafted else None,
            "drafters": self._drafters,
            "draft_length": round(self._drafts / decoding, 3),
            "rows": round(self._rows / decoding, 3),
            "row_steps": self._rows,
            "running": last.running,
            "waiting": last.waiting,
            "batch_size": last.batch_size,
            "memory": last.memory,
            "peak_memory": self._memory,
            "itl": {str(number): count for number, count in sorted(self._gaps.items())},
        }
