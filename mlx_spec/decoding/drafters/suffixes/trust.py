"""How far a lookup is believed: by how long the match is, as learned from what came true.

A count of 1 of 1 says little after a match of two tokens and nearly all after one of twelve. So
what counts say is scaled by how often such guesses came true, of all rows of one drafter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Seq


class Trust:
    """Chances of guesses, by the length of their match.

    Args:
        lengths: where the next group of match lengths begins.
        usual: chances to begin with, one more.
    """

    PRIOR = 8.0  # guesses that the usual weighs
    MEMORY = 0.995  # share of the past that each guess keeps
    MOST = 0.99

    def __init__(self, lengths: Seq[int], usual: Seq[float]) -> None:
        self._lengths, self._usual = lengths, usual
        self._right = [self.PRIOR * chance for chance in usual]
        self._promised = [self.PRIOR] * len(usual)

    def chance(self, matched: int, share: float) -> float:
        """Of a guess that followed in this share of the places, after so many matching tokens."""
        group = bisect_right(self._lengths, matched)
        return min(share * self._right[group] / self._promised[group], self.MOST)

    def learn(self, matched: int, share: float, right: bool) -> None:
        """Hear what became of such a guess."""
        group, keep = bisect_right(self._lengths, matched), self.MEMORY
        prior, usual = (1 - keep) * self.PRIOR, self._usual[group]
        # Old evidence gives way to the usual, so that a group never rests on one guess.
        self._right[group] = keep * self._right[group] + prior * usual + right
        self._promised[group] = keep * self._promised[group] + prior + share
