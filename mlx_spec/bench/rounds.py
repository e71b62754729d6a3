"""Runs that take turns, round after round in one process, and what is made of their figures.

A machine is never quite at rest, so a comparison is a median of ratios within a round. No mlx.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence as Seq

Figures = dict[str, float]


class Series:
    """The runs of one method: figures by name, one for each round."""

    def __init__(self, rounds: Seq[Figures]) -> None:
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


def ratios(ours: Series, theirs: Series, name: str) -> list[float]:
    """Ours / theirs in every round."""
    return [a / b for a, b in zip(ours.each(name), theirs.each(name), strict=True)]


def ratio(ours: Series, theirs: Series, name: str) -> float:
    """Median over rounds of ours / theirs."""
    return statistics.median(ratios(ours, theirs, name))
