"""``Filling``: how guesses are given to rows where only the device knows how sure a drafter is.

Where steps are built ahead the host never sees what a drafter says of its guesses in time. It says
how many are verified, and what the drafter's word is worth; the device gives them to the likeliest
ones (``decoding.filling``), and the host hears of it with the step's results.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Filling:
    """What the host knows of it.

    Attributes:
        most: guesses that each row may be given at most; 0 for those that are not drafted for.
        guesses: that are given in all, at most the sum of these.
        worth: for each bin of what a drafter may say (``Confidence.worth``), how often what was
            said so came true, and how often it was tested.
        times: how much oftener than usual each row's guesses stand.
        weights: what a token is worth to each row; None where all are worth the same.
    """

    most: Seq[int]
    guesses: int
    worth: tuple[Seq[float], Seq[float]]
    times: Seq[float]
    weights: Seq[float] | None = None

    def within(self, made: int) -> Filling:
        """The same of rows for which no more guesses were made."""
        most = [min(own, made) for own in self.most]
        return replace(self, most=most, guesses=min(self.guesses, sum(most)))
