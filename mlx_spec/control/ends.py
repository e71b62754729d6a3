"""``Ends``: what a token is worth to each row, where the work that is there is all there is.

While others wait for a place, a row that ends makes room and every token counts alike. In a batch
that nobody joins, what counts is when the last row ends: a token for that row saves a whole step of
it alone, one for a row that ends sooner only what its place in the others' steps costs::

    a  ========                 steps of 4 rows, 3, 2 and 1: where a pass costs the same for any
    b  ===========              number of rows, time goes by c alone, and drafts that are right for
    c  ======================   a, b and d are passes of the drafter that c waits for
    d  ======
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import exp

from mlx_spec.control.row import Row


class Ends:
    """Watches whether rows that end are followed by others."""

    NEWEST = 0.05  # share of the newest step in the rate of newcomers
    # How surely the row that has most steps left is the last to end: limits are not always reached,
    # and luck differs. Too sure, it is wrong too often; too unsure, it does nothing.
    SURENESS = 6.0
    LEAST = 0.01  # of being the last ones, that is worth a thought
    HORIZON = 256.0  # steps; of what ends later nobody knows when

    def __init__(self) -> None:
        self._rows: Seq[Row] = ()
        self._newcomers = self._gone = 0.0  # a step

    def observe(self, rows: Seq[Row]) -> None:
        """Count those who are new, and those who are gone."""
        new = gone = 0
        if rows is not self._rows and rows != self._rows:
            new = len(set(rows).difference(self._rows))
            gone = len(self._rows) + new - len(rows)
            self._rows = rows
        self._newcomers += self.NEWEST * (new - self._newcomers)
        self._gone += self.NEWEST * (gone - self._gone)

    def weights(
        self, rows: Seq[Row], pace: Seq[float], together: float, alone: float
    ) -> list[float] | None:
        """What a token of each row is worth, 1 on average; None where all are worth the same.

        Args:
            rows: in the batch.
            pace: tokens that each gains by a step.
            together, alone: seconds of a plain step of all rows, and of one.
        """
        count = len(rows)
        if count < 2:
            return None
        remaining = [row.remaining for row in rows]
        steps = [max(left, 1) / gain for left, gain in zip(remaining, pace, strict=True)]
        most, sureness = max(steps), self.SURENESS
        leaving = max(self._gone, 0.5 * count / most)
        closed = (1.0 - min(1.0, self._newcomers / leaving)) * min(1.0, self.HORIZON / most)
        if closed < self.LEAST:
            return None
        place = (together - alone) / (count - 1)
        last = [exp(sureness * (left / most - 1.0)) for left in steps]
        saved = alone - place
        total = sum(last)
        worth = [place + saved * chance / total for chance in last]
        mean = sum(worth) / count
        return [1.0 - closed + closed * one / mean for one in worth]


def weighed(reaching: Seq[Seq[float]], weights: Seq[float] | None) -> list[Seq[float]]:
    """Guesses by what they bring, times what that is worth to the row."""
    if weights is None:
        return list(reaching)
    return [
        [weight * chance for chance in row] for row, weight in zip(reaching, weights, strict=True)
    ]
