"""``Confirmation``: whether a row's lookups are worth a verification, judged by its text alone.

Every row is looked up at every token, which costs microseconds; verifying costs a wider pass, and
that steps are taken in turn. So a lookup is first held against the text that comes anyway::

    shadow --- `needed` guesses in a row came true ---> verified
       ^                                                   |
       +--------------- credit used up -------------------+

A guess that came true earns credit, a wrong one costs half of that, a token without a guess a
little. A row that was verified in vain needs twice as many the next time, so a text made to
deceive settles at plain decoding; one that was right for long needs two again.
"""

from __future__ import annotations

from collections.abc import Collection

# Tokens that a row must gain on average by a step in turn: what waiting for it may cost.
WORTH = 0.1


class Confirmation:
    """What one row's lookups have earned.

    Args:
        verified: whether they are believed to begin with.

    Attributes:
        verified: whether its guesses are to be verified; else they are only looked up.
    """

    NEEDED = 2  # guesses in a row that came true
    MOST_NEEDED = 64
    BEGIN, MOST = 2.0, 4.0  # credit
    WRONG, NOTHING = 0.5, 0.15
    NEWEST = 0.125  # share of the newest token in what a row promises

    def __init__(self, verified: bool = False) -> None:
        self.verified = verified
        self._needed = self.NEEDED
        self._run = 0
        self._credit = self.BEGIN if verified else 0.0
        self._earned = self._rate = 0.0

    @property
    def promise(self) -> float:
        """Tokens of the next step that are likely found; 0 where nothing is verified."""
        return self._rate if self.verified else 0.0

    def judge(self, right: bool | None) -> None:
        """One token more: what was looked up for it was right, wrong, or nothing (None)."""
        self._run = self._run + 1 if right else 0
        self._rate += self.NEWEST * (bool(right) - self._rate)
        if self.verified:
            self._spend(right)
        elif self._run >= self._needed:
            self.verified, self._credit, self._earned = True, self.BEGIN, 0.0
            self._rate = max(self._rate, 0.5)

    def _spend(self, right: bool | None) -> None:
        """Count a token of a row that is verified."""
        if right:
            self._earned += 1.0
            self._credit = min(self._credit + 1.0, self.MOST)
            return
        loss = self.NOTHING if right is None else self.WRONG
        self._earned -= loss
        self._credit -= loss
        if self._credit <= 0:
            self.verified = False
            paid = self._earned > 0
            self._needed = self.NEEDED if paid else min(2 * self._needed, self.MOST_NEEDED)


def worth_waiting(rows: Collection[Confirmation]) -> bool:
    """Whether enough is likely found for some rows that all of them wait for the host."""
    promised = sum(row.promise for row in rows)
    return promised > 0 and promised >= WORTH * len(rows)
