"""What a step costs: measured seconds by batch size and draft length.

``StepCosts`` knows only what was measured in this process; between measured draft lengths it
interpolates, beyond them it extends the last slope, and for a batch size without measurements it
borrows the nearest one's. It holds no model of the hardware: cost by M = B (K + 1) is a staircase
on Metal and a line on a CPU, and only measuring knows which.

It holds nothing of any policy either, so all decoders of a pair share one, from any thread.
"""

from __future__ import annotations

import threading
from bisect import bisect
from collections import deque
from functools import lru_cache

from mlx_spec.control.report import StepWork


class Cell:
    """The last few measurements of one kind of step; their (lower) median is what counts.

    A hiccup of the machine (another program, a page fault, a first compilation) is one
    measurement among several and decides nothing, while a lasting change is followed soon.

    Attributes:
        seconds: that median.
    """

    KEPT = 5

    def __init__(self) -> None:
        self.seconds = 0.0
        self._measured: deque[float] = deque(maxlen=self.KEPT)
        self._clean = False

    def add(self, seconds: float, *, clean: bool = True) -> None:
        """Take one more measurement in.

        One that is not clean (the step did other work too) is better than none: it stands until
        the first clean one comes.
        """
        if clean and not self._clean:
            self._measured.clear()
            self._clean = True
        if clean or not self._clean:
            self._measured.append(seconds)
            self.seconds = sorted(self._measured)[(len(self._measured) - 1) // 2]

    @property
    def count(self) -> int:
        """Measurements kept."""
        return len(self._measured)


@lru_cache(maxsize=1024)
def bucket(batch: int) -> int:
    """Batch sizes that share a row of the table: each up to 8, then in steps of about a third."""
    if batch <= 8:
        return batch
    size = 8
    while size < batch:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class StepCosts:
    """Seconds of steps, as measured. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cells: dict[int, dict[int, Cell]] = {}  # bucket of rows -> draft length -> cell
        self._curves: dict[int, dict[int, float]] = {}  # of the buckets that did not change since
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps recorded so far, by all who share this."""
        return self._steps

    @property
    def comparable(self) -> bool:
        """Whether two draft lengths were measured at one batch size."""
        with self._lock:
            return any(len(row) >= 2 for row in self._cells.values())

    def record(self, work: StepWork, seconds: float, *, clean: bool = True) -> None:
        """Count one measured step; ``clean`` as in :meth:`Cell.add`."""
        size = bucket(work.rows)
        with self._lock:
            row = self._cells.setdefault(size, {})
            row.setdefault(work.length, Cell()).add(seconds, clean=clean)
            self._curves.pop(size, None)
            self._steps += 1

    def count(self, work: StepWork) -> int:
        """Measurements of steps like this one."""
        with self._lock:
            cell = self._cells.get(bucket(work.rows), {}).get(work.length)
            return cell.count if cell else 0

    def predict(self, work: StepWork) -> float | None:
        """Expected seconds of a step, None while nothing is known.

        For a batch size with fewer than two measured draft lengths the nearest richer one
        stands in: its absolute level is off, but draft lengths are compared within one size.
        """
        with self._lock:
            curve = self._curve(bucket(work.rows))
        return _read(curve, work.length) if curve else None

    def _curve(self, size: int) -> dict[int, float]:
        """Seconds by measured draft length, ascending; none more than a longer draft's."""
        if len(self._cells.get(size, ())) < 2:
            rich = [other for other, row in self._cells.items() if len(row) >= 2]
            size = min(rich, key=lambda other: abs(other - size)) if rich else size
        curve = self._curves.get(size)
        if curve is None:
            curve = self._curves[size] = _rising(self._cells.get(size, {}))
        return curve


def _rising(row: dict[int, Cell]) -> dict[int, float]:
    """Seconds by draft length, none more than a longer draft's: those are never cheaper."""
    seconds: dict[int, float] = {}
    least = float("inf")
    for length in sorted(row, reverse=True):
        least = min(least, row[length].seconds)
        seconds[length] = least
    return dict(reversed(seconds.items()))


def _read(curve: dict[int, float], length: int) -> float:
    """What a curve says of a length: measured, on the line between two, or on the last one's."""
    if length in curve:
        return curve[length]
    known = list(curve)
    if len(known) == 1:
        return curve[known[0]]
    upper = min(max(bisect(known, length), 1), len(known) - 1)
    low, high = known[upper - 1], known[upper]
    slope = (curve[high] - curve[low]) / (high - low)
    return max(curve[low] + slope * (length - low), 1e-9)
