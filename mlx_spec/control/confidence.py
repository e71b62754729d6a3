"""``Confidence``: what a drafter's own word for each of its guesses is worth.

A drafter that computes knows how probable it thinks its guess is. That says more of this very token
than any average of the row: guesses that it is sure of stand three or four times as often as those
that it is not. So a step asks for guesses of all rows, looks at these numbers, and verifies the
ones that are likeliest to stand::

    said   .9 .8 .2    tokens 5, two rows        reaching   .85 .66 .14     verified   a b
           .3 .9 .9                                         .31 .27 .24                c

How often guesses came true of which so much was said is counted in bins, over all texts of a pair:
by that a number becomes a chance. What was said lately stands for what will be said next, when a
step is planned (:meth:`Confidence.usual`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from operator import mul


@dataclass(frozen=True)
class Usual:
    """Rows as they were lately.

    Attributes:
        reaching: for each of them and each guess, how likely it stands with all before it.
        following: how likely the guess at a place stands, if those before it do: as it was where
            somebody went so far.
    """

    reaching: list[list[float]]
    following: list[float]


class Confidence:
    """Of one drafter, over all texts of a pair. Thread-safe; decoders of a pair share one.

    Attributes:
        heard: rows' steps of which something was said.
    """

    BINS = 10
    PRIOR = 6.0  # tested tokens that the drafter's own number weighs, in each bin
    MOST = 400.0  # tested tokens of a bin that are remembered
    MEMORY, TRUST = 0.95, 2.0  # of the past, that a row's step keeps; guesses that it weighs
    RECENT = 48  # rows' steps that stand for what is said usually
    ENOUGH = 4  # of these, before they do
    SURE = 0.995  # nothing is likelier
    FALL = 0.85  # of a guess that was not asked for, beside the one before it

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accepted = [0.0] * self.BINS
        self._tested = [0.0] * self.BINS
        self._lines = self._drawn()
        self._promised = self._kept = 0.0
        self.heard = 0
        self._recent: deque[tuple[float, ...]] = deque(maxlen=self.RECENT)

    @property
    def known(self) -> bool:
        """Whether enough was said to plan by."""
        return len(self._recent) >= self.ENOUGH

    def chance(self, said: float) -> float:
        """How likely a guess stands that the drafter thinks so probable, if those before it do."""
        part, times = self._lines[self._bin(said)]
        return min(part + times * said, self.SURE)

    @property
    def worth(self) -> tuple[list[float], list[float]]:
        """Of each bin, how often what was said so came true, and how often it was tested."""
        with self._lock:
            return list(self._accepted), list(self._tested)

    def reaching(self, said: Seq[float], times: float = 1.0) -> list[float]:
        """How likely each guess of a row stands with all before it.

        Args:
            said: how probable the drafter thinks each, if those before it stand, in [0, 1].
            times: how much oftener than usual this row's do.
        """
        sure = self.SURE
        return list(accumulate((min(times * self.chance(one), sure) for one in said), mul))

    @property
    def times(self) -> float:
        """How much oftener than by this guesses came true lately, of whatever was said: one that
        boasts does so everywhere, and is found out before each bin was tested."""
        return (self._kept + self.TRUST) / (self._promised + self.TRUST)

    def next(self, said: Seq[float], times: Seq[float]) -> list[float]:
        """How likely one guess of each row stands if those before it do; by row, as
        :meth:`reaching` has them."""
        bins, lines, sure, found = self.BINS, self._lines, self.SURE, []
        for number, often in zip(said, times, strict=True):
            own = int(number * bins)
            part, slope = lines[own if 0 <= own < bins else self._bin(number)]
            chance = part + slope * number
            chance = often * (chance if chance < sure else sure)
            found.append(chance if chance < sure else sure)
        return found

    def usual(self, most: int) -> Usual:
        """Rows as they were lately, each as if it had been asked for ``most``."""
        chances, gone, passed, times = [], [0] * most, [0.0] * most, self.times
        for said in tuple(self._recent):
            own = self.next(said[:most], [times] * min(most, len(said)))
            for place, chance in enumerate(own):
                gone[place] += 1
                passed[place] += chance
            while len(own) < most:
                own.append(self.FALL * own[-1])
            chances.append(list(accumulate(own, mul)))
        following: list[float] = []
        for rows, total in zip(gone, passed, strict=True):
            before = following[-1] if following else 0.0
            following.append(total / rows if rows else self.FALL * before)
        return Usual(chances, following)

    def say(self, said: Seq[Seq[float]]) -> None:
        """Note what was said of rows, whether verified or not."""
        with self._lock:
            self.heard += len(said)
            self._recent.extend(tuple(row) for row in said if row)

    def add(self, rows: Seq[Seq[float]], accepted: Seq[int]) -> list[float]:
        """Count verified guesses of rows, of which so many stood; what follows was not tested.

        Returns:
            How many of those that were tested were to stand, by row, as was thought before.
        """
        keep, found = self.MEMORY, list[float]()
        with self._lock:
            for said, stood in zip(rows, accepted, strict=True):
                promised = self._count(said, stood)
                found.append(promised)
                self._promised = keep * self._promised + promised
                self._kept = keep * self._kept + min(stood, len(said))
            self._lines = self._drawn()
        return found

    def _count(self, said: Seq[float], stood: int) -> float:
        """The same of one row. Done for each row of each step: calls are few."""
        right, tested, lines, most = self._accepted, self._tested, self._lines, self.MOST
        bins, sure, promised, left = self.BINS, self.SURE, 0.0, stood
        for number in said[: stood + 1]:
            own = int(number * bins)
            if not 0 <= own < bins:
                own = self._bin(number)
            part, slope = lines[own]
            chance = part + slope * number
            promised += chance if chance < sure else sure
            if tested[own] >= most:
                keep = 1.0 - 1.0 / most
                right[own] *= keep
                tested[own] *= keep
            if left:
                right[own] += 1.0
                left -= 1
            tested[own] += 1.0
        return promised

    def _drawn(self) -> list[tuple[float, float]]:
        """A chance is a line over what is said, for each bin."""
        prior = self.PRIOR
        counts = zip(self._accepted, self._tested, strict=True)
        return [(right / (tested + prior), prior / (tested + prior)) for right, tested in counts]

    def _bin(self, number: float) -> int:
        return max(0, min(int(number * self.BINS), self.BINS - 1))
