"""What a step costs: measured seconds by batch size and draft length.

The table knows only what was measured in this process; between measured draft lengths it
interpolates, beyond them it extends the last slope, and for a batch size without measurements it
borrows the nearest one's. It holds no model of the hardware: cost by M = B (K + 1) is a staircase
on Metal and a line on a CPU, and only measuring knows which.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """A moving average of one cell.

    The first measurement of a shape often pays for compiling or allocating: the second
    replaces it when it is lower.
    """

    seconds: float
    count: int = 1

    NEWEST = 0.3  # share of the newest measurement
    OUTLIER = 2.0  # a measurement counts as at most this times the average

    def add(self, seconds: float) -> None:
        """Take one more measurement in."""
        self.count += 1
        if self.count == 2:
            self.seconds = min(self.seconds, seconds)
        else:
            seconds = min(seconds, self.OUTLIER * self.seconds)
            self.seconds += self.NEWEST * (seconds - self.seconds)


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

    def record(self, batch: int, length: int, seconds: float) -> None:
        """Count one measured step."""
        row = self._cells.setdefault(bucket(batch), {})
        if length in row:
            row[length].add(seconds)
        else:
            row[length] = Cost(seconds)

    def predict(self, batch: int, length: int) -> float | None:
        """Expected seconds of a step, None while nothing is known.

        For a batch size with fewer than two measured draft lengths the nearest richer one
        stands in: its absolute level is off, but draft lengths are compared within one size.
        """
        row = self._row(bucket(batch))
        if not row:
            return None
        known = sorted(row)
        if length in row:
            return row[length].seconds
        if len(known) == 1:
            return row[known[0]].seconds
        upper = next((i for i, key in enumerate(known) if key > length), len(known) - 1)
        upper = max(upper, 1)
        low, high = known[upper - 1], known[upper]
        slope = (row[high].seconds - row[low].seconds) / (high - low)
        # Longer drafts are never cheaper; a noisy pair of cells must not say so.
        slope = max(slope, 0.0)
        return max(row[low].seconds + slope * (length - low), 1e-9)

    def _row(self, size: int) -> dict[int, Cost]:
        own = self._cells.get(size, {})
        if len(own) >= 2:
            return own
        rich = [other for other, row in self._cells.items() if len(row) >= 2]
        if not rich:
            return own
        return self._cells[min(rich, key=lambda other: abs(other - size))]
