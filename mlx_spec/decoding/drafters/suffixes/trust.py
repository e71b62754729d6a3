"""How far a lookup is believed: by how long the match is, as learned from what came true.

A count of 1 of 1 says little after a match of two tokens and nearly all after one of twelve. So
what counts say is scaled by how often such guesses came true, of all rows of one drafter.
"""

from __future__ import annotations

from bisect import bisect_right


class Trust:
    """Chances of guesses, by the length of their match.

    It begins with what chats, summaries and code of a small model showed.
    """

    LENGTHS = (3, 4, 5, 7, 10, 16)  # where the next group of match lengths begins
    USUAL = (0.35, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)
    PRIOR = 8.0  # guesses that the usual weighs
    MEMORY = 0.995  # share of the past that each guess keeps
    MOST = 0.99

    def __init__(self) -> None:
        self._right = [self.PRIOR * usual for usual in self.USUAL]
        self._promised = [self.PRIOR] * len(self.USUAL)

    def chance(self, matched: int, share: float) -> float:
        """Of a guess that followed in this share of the places, after so many matching tokens."""
        group = bisect_right(self.LENGTHS, matched)
        return min(share * self._right[group] / self._promised[group], self.MOST)

    def learn(self, matched: int, share: float, right: bool) -> None:
        """Hear what became of such a guess."""
        group, keep = bisect_right(self.LENGTHS, matched), self.MEMORY
        prior, usual = (1 - keep) * self.PRIOR, self.USUAL[group]
        # Old evidence gives way to the usual, so that a group never rests on one guess.
        self._right[group] = keep * self._right[group] + prior * usual + right
        self._promised[group] = keep * self._promised[group] + prior + share
