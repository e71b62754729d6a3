"""``PositionTally``: what the rows of one step show of each position of a guess."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate

from mlx_spec.control.shifts import PARTS


class PositionTally:
    """What the rows of one step show of each position.

    Args:
        profile: as ``AverageAcceptance`` has it.
        longest: guesses of any row.

    Attributes:
        passed: by how many positions are tested, the sum of their profile.
        parts: by the same, in how many parts of a row's chance the average of these is told.
        numbers: 0, 1, ... as floats, which are added to others in a third of the time.
        fallen, stood: rows whose tests ended at this position, since its guess fell, or as the
            last of those that all stood; index 0 is nobody's.
        chances: of both, the sum.
    """

    def __init__(self, profile: Seq[float], longest: int) -> None:
        self._told_apart = len(profile)
        beyond = (profile[-1],) * (longest - len(profile))
        passed = self.passed = [0.0, *accumulate((*profile[:longest], *beyond))]
        self.parts = [PARTS * usual / (tested or 1) for tested, usual in enumerate(passed)]
        self.numbers = [float(number) for number in range(longest + 1)]
        self.fallen, self.stood = [0] * (longest + 1), [0] * (longest + 1)
        self.chances = [0.0] * (longest + 1)

    def by_position(self) -> tuple[list[float], list[float]]:
        """Accepted, and tested, as far as anybody was: of the first position rows, of others what
        chances make of them."""
        accepted: list[float] = []
        tested: list[float] = []
        rows, expected = 0, 0.0
        places = [*zip(self.fallen, self.stood, self.chances, strict=True)]
        for fallen, stood, chances in places[:0:-1]:
            more = rows + stood
            rows = more + fallen
            if rows:
                expected += chances
                accepted.append(float(more))
                tested.append(expected)
        if tested:
            tested[-1] = float(rows)
        return accepted[::-1][: self._told_apart], tested[::-1][: self._told_apart]
