"""What the figures say: how loud the noise is, what wins beyond it, what to use. No mlx."""

from __future__ import annotations

import statistics
from collections.abc import Sequence as Seq
from dataclasses import dataclass

FLOOR = 0.01
"""Least noise that is believed in: a hundredth."""


@dataclass(frozen=True)
class Contender:
    """One way to decode, as something to choose.

    Attributes:
        name: as tables have it.
        drafts: whether anything is drafted.
        models: that it needs beside the target; of two that are as good the lighter one wins.
    """

    name: str
    drafts: bool = False
    models: int = 0


@dataclass(frozen=True)
class Measured:
    """One arm in one cell.

    Attributes:
        weights: how they were quantized; None for as they are.
        batch: rows.
        length: tokens of the prompts.
        choice: the arm.
        speed: median tokens a second of decoding.
        ratios: over plain decoding, one for each round.
        same: whether it said what plain decoding says, near ties apart.
    """

    weights: str | None
    batch: int
    length: float
    choice: Contender
    speed: float
    ratios: tuple[float, ...]
    same: bool = True

    @property
    def ratio(self) -> float:
        """Median over plain decoding."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Recommendation:
    """What to use, for one purpose.

    Attributes:
        weights: of which quantization this is.
        purpose: ``"one"`` (a prompt at a time) or ``"many"``.
        batch: rows.
        choice: how to decode.
        ratio: over plain decoding with as many rows.
        speed: tokens a second of all rows together.
        over_one: that over the best of one row; 1 where it is that one.
        rising: whether the largest batch measured is the fastest: still larger ones may be better.
    """

    weights: str | None
    purpose: str
    batch: int
    choice: Contender
    ratio: float
    speed: float
    over_one: float = 1.0
    rising: bool = False


def noise_of(null_ratios: Seq[float]) -> float:
    """How far apart the same thing measured twice may be: twice the typical distance of plain
    decoding to itself within a round, which a median of three rounds seldom exceeds by chance."""
    if not null_ratios:
        return FLOOR
    return max(FLOOR, 2 * statistics.median(abs(one - 1) for one in null_ratios))


def recommend(cells: Seq[Measured], noise: float) -> list[Recommendation]:
    """For each kind of weights: what to use for one prompt at a time, and for many.

    Args:
        cells: of all arms that may be recommended, plain decoding (which drafts nothing) included.
        noise: gains up to it are none.
    """
    found = []
    for weights in dict.fromkeys(one.weights for one in cells):
        own = [one for one in cells if one.weights == weights]
        best = {
            batch: _best([one for one in own if one.batch == batch], noise)
            for batch in sorted({one.batch for one in own})
        }
        fewest, most = min(best), max(best)
        if fewest == 1:
            choice, ratio, speed = best[1]
            found.append(Recommendation(weights, "one", 1, choice, ratio, speed))
        if most > 1:
            fastest = max(speed for _, _, speed in best.values())
            # The smallest batch that is as fast: each row waits less, and takes memory.
            batch = next(b for b, (_, _, speed) in best.items() if speed * (1 + noise) >= fastest)
            choice, ratio, speed = best[batch]
            over = speed / best[1][2] if fewest == 1 else 1.0
            rising = batch == most
            found.append(Recommendation(weights, "many", batch, choice, ratio, speed, over, rising))
    return found


def _best(cells: Seq[Measured], noise: float) -> tuple[Contender, float, float]:
    """The arm to use with so many rows, its gain, and its speed; over all lengths of prompts.

    The lightest of those that are within the noise of the fastest: so plain decoding wherever
    nothing beats it by more.
    """
    arms: dict[str, list[Measured]] = {}
    for one in cells:
        arms.setdefault(one.choice.name, []).append(one)
    gains = {
        name: statistics.geometric_mean(one.ratio for one in own)
        for name, own in arms.items()
        if not own[0].choice.drafts or (_steady(own) and all(one.same for one in own))
    }
    highest = max(gains.values())
    name = min(
        (name for name, gain in gains.items() if gain * (1 + noise) >= highest),
        key=lambda name: (arms[name][0].choice.drafts, arms[name][0].choice.models, -gains[name]),
    )
    own = arms[name]
    return own[0].choice, gains[name], statistics.geometric_mean(one.speed for one in own)


def _steady(own: Seq[Measured]) -> bool:
    """Whether an arm beats plain decoding in nearly every round: in all of three, in all but one
    of five. A median alone may be a single round's luck."""
    rounds = sorted(ratio for one in own for ratio in one.ratios)
    return rounds[len(rounds) // 4] > 1
