"""What a step costs: measured seconds by batch size and draft length.

The table knows only what was measured in this process; between measured draft lengths it
interpolates, beyond them it extends the last slope, and for a batch size without measurements it
borrows the nearest one's. It holds no model of the hardware: cost by M = B (K + 1) is a staircase
on Metal and a line on a CPU, and only measuring knows which.
"""

from __future__ import annotations

from collections import deque


class Cost:
    """The last few measurements of one cell; their (lower) median is what counts.

    A hiccup of the machine (another program, a page fault, a first compilation) is one
    measurement among several and decides nothing, while a lasting change is followed soon.
    """

    KEPT = 5

    def __init__(self) -> None:
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

    @property
    def count(self) -> int:
        """Measurements kept."""
        return len(self._measured)

    @property
    def seconds(self) -> float:
        """The lower median."""
        return sorted(self._measured)[(len(self._measured) - 1) // 2]


def bucket(batch: int) -> int:
    """Batch sizes that share a row of the table: each up to 8, then in steps of about a third."""
    if batch <= 8:
        return batch
    size = 8
    while size < batch:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class CostTable:
    """Seconds per step by (batch size, draft length)."""

    def __init__(self) -> None:
        self._cells: dict[int, dict[int, Cost]] = {}

    @property
    def comparable(self) -> bool:
        """Whether two draft lengths were measured at one batch size."""
        return any(len(row) >= 2 for row in self._cells.values())

    def record(self, batch: int, length: int, seconds: float, *, clean: bool = True) -> None:
        """Count one measured step; ``clean`` as in :meth:`Cost.add`."""
        row = self._cells.setdefault(bucket(batch), {})
        row.setdefault(length, Cost()).add(seconds, clean=clean)

    def count(self, batch: int, length: int) -> int:
        """Measurements of this cell."""
        cell = self._cells.get(bucket(batch), {}).get(length)
        return cell.count if cell else 0

    def predict(self, batch: int, length: int) -> float | None:
        """Expected seconds of a step, None while nothing is known.

        For a batch size with fewer than two measured draft lengths the nearest richer one
        stands in: its absolute level is off, but draft lengths are compared within one size.
        """
        row = _rising(self._row(bucket(batch)))
        if not row:
            return None
        known = sorted(row)
        if length in row:
            return row[length]
        if len(known) == 1:
            return row[known[0]]
        upper = next((i for i, key in enumerate(known) if key > length), len(known) - 1)
        upper = max(upper, 1)
        low, high = known[upper - 1], known[upper]
        slope = (row[high] - row[low]) / (high - low)
        return max(row[low] + slope * (length - low), 1e-9)

    def _row(self, size: int) -> dict[int, Cost]:
        own = self._cells.get(size, {})
        if len(own) >= 2:
            return own
        rich = [other for other, row in self._cells.items() if len(row) >= 2]
        if not rich:
            return own
        return self._cells[min(rich, key=lambda other: abs(other - size))]


def _rising(row: dict[int, Cost]) -> dict[int, float]:
    """Seconds by draft length, none more than a longer draft's: those are never cheaper."""
    seconds: dict[int, float] = {}
    least = float("inf")
    for length in sorted(row, reverse=True):
        least = min(least, row[length].seconds)
        seconds[length] = least
    return seconds
