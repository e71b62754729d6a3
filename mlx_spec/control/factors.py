"""``Factor`` and ``follow``: measured seconds bend a prediction without tearing it.

A prediction is a product and sum of few things, each with a factor that is usually near 1: the
speed of the machine now, one point of a table, what a key costs. One measurement is one number, so
it moves each of them by its share of the prediction and by how little is known of it::

    predicted   40 ms = speed 1.0 x (pass of 16 tokens 38 ms + 1,000 keys 2 ms)
    measured    60 ms, again and again     speed is well known: the pass is dearer than thought
                                           the pass is well known: the machine has become slower

This is a Kalman filter of logarithms that takes its factors as independent. A hiccup (another
program, a page fault, a first compilation) is held back until others like it follow, so it moves
nothing; what lasts is followed from the third measurement on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq


class Factor:
    """A number that predictions are multiplied by.

    Args:
        doubt: standard deviation of its logarithm, before anything was seen.
        times: what it is taken for until then.

    Attributes:
        times: the number.
        variance: of its logarithm.
        surprises: of predictions that it was the point of, in a row, negative on the quick side.
    """

    LEAST = 1e-4  # variance that stays: nothing is ever quite known
    CONFIRMED = 3  # surprises in a row, which are believed

    FAR = 2.5  # its logarithm goes no further, unless it was doubted from the beginning
    STEEP = 0.2  # what a measurement leaves of a part at least

    __slots__ = ("_far", "_log", "surprises", "times", "variance")

    def __init__(self, doubt: float, times: float = 1.0) -> None:
        self._log, self.times, self.variance = math.log(times), times, doubt * doubt
        self.surprises, self._far = 0, max(self.FAR, 3.0 * doubt)

    def wonder(self, side: int) -> bool:
        """Count a surprise on one side; whether there were enough of them in a row."""
        self.surprises = self.surprises + side if self.surprises * side > 0 else side
        return abs(self.surprises) >= self.CONFIRMED

    def move(self, by: float, share: float, gain: float) -> None:
        """Take its part of a surprise.

        Args:
            by: logarithm of what was measured over what was predicted.
            share: of the prediction that is multiplied by it.
            gain: 1 over the variance of all that may be wrong.
        """
        if share <= 0.0:
            return
        # Its part of the surprise, in [0, 1); a small part must grow by much to explain it, but by
        # no more than explains it.
        far, part = self._far, share * share * self.variance * gain
        # Three of these a step, and a comparison is a third of a call of min or max.
        moved = part * by
        grown = 1.0 + math.expm1(moved if moved < far else far) / share
        place = self._log + math.log(grown if grown > self.STEEP else self.STEEP)
        place = far if place > far else place if place > -far else -far
        self._log, self.times = place, math.exp(place)
        variance = self.variance * (1.0 - part)
        self.variance = variance if variance > self.LEAST else self.LEAST


NOISE = 0.05  # usual deviation of a step's seconds
WANDER = 1e-4  # variance that the speed gains with each measurement
SURPRISE = 4.0  # deviations; what is further off is held back


def follow(predicted: float, seconds: float, parts: Seq[tuple[Factor, float]]) -> bool:
    """Bend what was predicted towards what was measured; whether it was.

    Args:
        predicted, seconds: of one step.
        parts: factors, and of how much of the prediction each is one, in [0, 1]: first the
            machine's speed, then what the step was an example of, then others.
    """
    if seconds <= 0 or predicted <= 0:
        return False
    by = math.log(seconds / predicted)
    speed, point = parts[0][0], parts[min(1, len(parts) - 1)][0]
    speed.variance += WANDER
    variance = _variance(parts)
    if by * by > SURPRISE * SURPRISE * variance:
        side = 1 if by > 0 else -1
        everywhere, here = speed.wonder(side), point is not speed and point.wonder(side)
        if not everywhere and not here:
            return False
        # Something has changed, what was least known most likely.
        for one, _ in parts:
            one.variance *= by * by / variance
        variance = _variance(parts)
    speed.surprises = point.surprises = 0
    gain = 1.0 / variance
    for one, share in parts:
        one.move(by, share, gain)
    return True


def _variance(parts: Seq[tuple[Factor, float]]) -> float:
    total = 0.0
    for one, share in parts:
        total += share * share * one.variance
    return NOISE * NOISE + total
