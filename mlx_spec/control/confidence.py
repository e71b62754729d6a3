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
from itertools import accumulate
from operator import mul


class Confidence:
    """Of one drafter, over all texts of a pair. Thread-safe; decoders of a pair share one."""

    BINS = 10
    PRIOR = 6.0  # tested tokens that the drafter's own number weighs, in each bin
    MOST = 400.0  # tested tokens of a bin that are remembered
    RECENT = 48  # rows' steps that stand for what is said usually
    ENOUGH = 24  # of these, before they do
    SURE = 0.995  # nothing is likelier
    FALL = 0.85  # of a guess that was not asked for, beside the one before it

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accepted = [0.0] * self.BINS
        self._tested = [0.0] * self.BINS
        self._recent: deque[tuple[float, ...]] = deque(maxlen=self.RECENT)

    @property
    def known(self) -> bool:
        """Whether enough was said to plan by."""
        return len(self._recent) >= self.ENOUGH

    def chance(self, said: float) -> float:
        """How likely a guess stands that the drafter thinks so probable, if those before it do."""
        own = self._bin(said)
        right = self._accepted[own] + self.PRIOR * said
        return min(right / (self._tested[own] + self.PRIOR), self.SURE)

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

    def usual(self, most: int) -> list[list[float]]:
        """``reaching`` of rows as they were lately, each as if it had been asked for ``most``."""
        found = []
        for said in tuple(self._recent):
            chances = [self.chance(number) for number in said[:most]]
            while len(chances) < most:
                chances.append(self.FALL * chances[-1])
            found.append(list(accumulate(chances, mul)))
        return found

    def following(self, guess: int) -> float:
        """How likely the guess at that place stands, 0 the first, if those before it do: as it was
        where somebody went so far."""
        found = [self.chance(said[guess]) for said in tuple(self._recent) if len(said) > guess]
        if found:
            return sum(found) / len(found)
        return self.FALL * self.following(guess - 1) if guess else 0.0

    def say(self, said: Seq[Seq[float]]) -> None:
        """Note what was said of rows, whether verified or not."""
        with self._lock:
            self._recent.extend(tuple(row) for row in said if row)

    def add(self, said: Seq[float], accepted: int) -> None:
        """Count a row's verified guesses, of which so many stood; what follows was not tested."""
        with self._lock:
            for place, number in enumerate(said[: accepted + 1]):
                own = self._bin(number)
                if self._tested[own] >= self.MOST:
                    keep = 1.0 - 1.0 / self.MOST
                    self._accepted[own] *= keep
                    self._tested[own] *= keep
                self._accepted[own] += place < accepted
                self._tested[own] += 1.0

    def _bin(self, number: float) -> int:
        return max(0, min(int(number * self.BINS), self.BINS - 1))
