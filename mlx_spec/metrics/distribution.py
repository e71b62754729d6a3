"""Percentiles, the gaps between a request's tokens, and histograms small enough for a log line.

The inter-token latency (ITL) is the gap between two times at which a request's reader was given
tokens; a run of accepted draft tokens is given at once. Time per output token (TPOT) is the
figure per token, and lives on the request's own record.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlx_spec.events import StepDone

# Each bucket is 2% wider than the one before, so a value read back is right within 1%.
_RATIO = math.log(1.02)
_LEAST = 1e-6


@dataclass(frozen=True)
class Percentiles:
    """Some values by their order; ``None`` for each figure where there are no values."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        """Of the values themselves."""
        return cls.of_counts(_count(values))

    @classmethod
    def of_counts(cls, counts: Mapping[float, int]) -> Percentiles:
        """Of values that occur several times: value -> how often."""
        import numpy as np  # slow to import, and only a summary asks

        if not counts:
            return cls()
        order = sorted(counts)
        values = np.array(order)
        weights = np.array([counts[value] for value in order])
        p50, p90, p99 = np.percentile(np.repeat(values, weights), (50, 90, 99))
        mean = float(np.average(values, weights=weights))
        return cls(int(weights.sum()), mean, float(p50), float(p90), float(p99), float(values[-1]))


def _count(values: Iterable[float]) -> dict[float, int]:
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def bucket(seconds: float) -> int:
    """The number of the bucket that a time falls into."""
    return round(math.log(max(seconds, _LEAST)) / _RATIO)


def bucket_value(number: int) -> float:
    """The middle of a bucket, in seconds."""
    return math.exp(number * _RATIO)


class Gaps:
    """The gaps between the times at which each running request gained tokens."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def of(self, step: StepDone) -> list[tuple[float, int]]:
        """Gaps that this step closed, and how many rows had each of them."""
        counts: dict[float, int] = {}
        last, now = self._last, step.time
        for request_id in step.emitted:
            before = last.get(request_id)
            last[request_id] = now
            if before is not None:
                # Rows that were there in the step before share one and the same gap.
                gap = now - before
                counts[gap] = counts.get(gap, 0) + 1
        return list(counts.items())

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._last.pop(request_id, None)
