"""Methods that run in turn, round after round in one process, and what is made of their figures.

These machines are shared and noisy, so a comparison is a median of ratios within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

Figures = dict[str, float]
Method = Callable[[], Figures]


class Series:
    """The runs of one method: figures by name, one for each round."""

    def __init__(self, rounds: Sequence[Figures]) -> None:
        self.rounds = list(rounds)

    def median(self, name: str) -> float:
        """Median of a figure over the rounds."""
        return statistics.median(self.each(name))

    def each(self, name: str) -> list[float]:
        """A figure in every round."""
        return [figures[name] for figures in self.rounds]

    def span(self, name: str, digits: int = 1) -> str:
        """``median (min-max)``."""
        each = self.each(name)
        return f"{self.median(name):.{digits}f} ({min(each):.{digits}f}-{max(each):.{digits}f})"


def interleave(methods: Mapping[str, Method], rounds: int) -> dict[str, Series]:
    """Run every method once a round, in turn, after one round that does not count."""
    figures: dict[str, list[Figures]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, method in methods.items():
            mx.clear_cache()
            result = method()
            if turn:
                figures[name].append(result)
    return {name: Series(each) for name, each in figures.items()}


def ratio(ours: Series, theirs: Series, name: str) -> float:
    """Median over rounds of ours / theirs."""
    pairs = zip(ours.each(name), theirs.each(name), strict=True)
    return statistics.median(a / b for a, b in pairs)
