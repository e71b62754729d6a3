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
from math import exp, sqrt

from mlx_spec.control.demand import RowDemand
from mlx_spec.control.row import Row


class Ends:
    """Watches whether rows that end are followed by others, and how fast each goes.

    Args:
        demand: requests that want a row; where nobody says, rows that begin are newcomers.
    """

    NEWEST = 0.05  # share of the newest step in the rate of newcomers
    # How surely the row that has most steps left is the last to end: limits are not always reached,
    # and luck differs, by less the more steps are left. Too sure, it is wrong too often; too
    # unsure, it does nothing.
    SURENESS, MOST_SURE = 1.5, 10.0
    LEAST = 0.01  # of being the last ones, that is worth a thought
    HORIZON = 256.0  # steps; of what ends later nobody knows when
    # What is expected of a row's next step weighs as much as so many that it has taken, and what
    # all rows do.
    EXPECTED, USUAL = 2.0, 2.0

    def __init__(self, demand: RowDemand | None = None) -> None:
        self._rows: Seq[Row] = ()
        self._newcomers = self._gone = 0.0  # a step
        self._demand, self._came = demand, 0
        self._steps, self._begun = 0, dict[Row, tuple[int, int]]()  # steps, and known tokens

    def observe(self, rows: Seq[Row]) -> None:
        """Count those who are new, and those who are gone."""
        self._steps += 1
        new = gone = 0
        if rows is not self._rows and rows != self._rows:
            begun = {row: self._begun.get(row) or (self._steps, row.length) for row in rows}
            new = sum(row not in self._begun for row in begun)
            gone = len(self._begun) + new - len(rows)
            self._rows, self._begun = rows, begun
        if self._demand is not None:
            # A batch that begins is no news of others.
            begins, came = new == len(rows), self._demand.came
            new, self._came = 0 if begins else came - self._came, came
            self._newcomers = 0.0 if begins else self._newcomers
        self._newcomers += self.NEWEST * (new - self._newcomers)
        self._gone += self.NEWEST * (gone - self._gone)

    def _pace(self, rows: Seq[Row], brings: Seq[float]) -> list[float]:
        """Tokens that each row gains by a step: by those it has taken, and by what guesses bring
        the next one."""
        steps, begun, unknown = self._steps, self._begun, (self._steps, 0)
        taken = [steps - begun.get(row, unknown)[0] for row in rows]
        gained = [
            row.length - begun[row][1] if number else 0
            for row, number in zip(rows, taken, strict=True)
        ]
        usual = (sum(gained) + self.USUAL) / (sum(taken) + self.USUAL)
        prior, weight = self.USUAL * usual, self.EXPECTED + self.USUAL
        return [
            (own + self.EXPECTED * (1.0 + more) + prior) / (number + weight)
            for own, number, more in zip(gained, taken, brings, strict=True)
        ]

    def weights(
        self, rows: Seq[Row], brings: Seq[float], together: float, alone: float
    ) -> list[float] | None:
        """What a token of each row is worth, 1 on average; None where all are worth the same.

        Args:
            rows: in the batch.
            brings: tokens that guesses are expected to bring each by the next step.
            together, alone: seconds of a plain step of all rows, and of one.
        """
        count = len(rows)
        if count < 2 or (self._demand is not None and self._demand.waiting):
            return None
        remaining, pace = [row.remaining for row in rows], self._pace(rows, brings)
        steps = [max(left, 1) / gain for left, gain in zip(remaining, pace, strict=True)]
        most = max(steps)
        sureness = min(self.SURENESS * sqrt(most), self.MOST_SURE)
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
