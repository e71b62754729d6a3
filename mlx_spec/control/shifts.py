"""``Run``: whether guesses stand oftener, or more seldom, by luck or since the text is another one.

Averages answer both the same way: slowly. So beside them it is counted how much better what has
come since is explained by odds that have moved than by those that were believed. What speaks
against it brings the score back to nothing, where a new run begins; a score that luck hardly
reaches ends what was believed, and what has come since the run began takes its place::

    believed .9, odds moved by 4.5: .67          right  wrong  right  wrong  wrong  wrong  wrong
                                        score     0     1.2     .9     2.1    3.3    4.5    5.7
                                                                   one more: 6.9 > 6, 1 of 7

This is Page's test (CUSUM, 1954) of two Bernoulli chances, on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY = 0.93  # share of the past that each step of a row keeps
MOVED = 1.5  # logarithm of the odds, by which they have moved if they have
PARTS = 64  # chances are told apart to one of so many
BOUND = 6.0  # of the score: so seldom luck, as a logarithm, that it is not taken for that
WEIGHT = 10.0  # guesses, that what has come since weighs at most: it was chosen for its luck


@dataclass(slots=True)
class Run:
    """What has come since one kind of move (up, or down) had nothing for it.

    Attributes:
        score: how much likelier moved odds have made it, as a logarithm, never below 0.
        accepted, tested, usual: guesses, as ``RowEvidence`` has them; where the score is 0, of
            nothing that counts.
    """

    score: float = 0.0
    accepted: float = 0.0
    tested: float = 0.0
    usual: float = 0.0

    @property
    def believed(self) -> tuple[float, float, float]:
        """Accepted, tested and usual, as far as they are believed."""
        keep = min(1.0, WEIGHT / self.tested)
        return keep * self.accepted, keep * self.tested, keep * self.usual

    def restart(self) -> None:
        """Count from here."""
        self.score = self.accepted = self.tested = self.usual = 0.0

    def add(self, said: float, accepted: float, tested: float, usual: float) -> bool:
        """Take what a step says for the move, and its guesses; whether it is believed now."""
        score = self.score + said
        if score <= 0.0:
            self.restart()
            return False
        self.score = score
        self.accepted += accepted
        self.tested += tested
        self.usual += usual
        return score > BOUND


@dataclass(slots=True)
class TestedGuesses:
    """Guesses of one row that were tested, recent ones weighing more.

    Attributes:
        accepted, tested: draft tokens: accepted, and really looked at by the target.
        usual: the tested ones, each weighed by how often its position stands beside the first.
        rise, fall: what has come since guesses began to stand oftener, or more seldom, than that.
    """

    accepted: float = 0.0
    tested: float = 0.0
    usual: float = 0.0
    rise: Run = field(default_factory=Run)
    fall: Run = field(default_factory=Run)

    def believe(self, run: Run) -> None:
        """What has come since it began to surprise, and nothing before."""
        self.accepted, self.tested, self.usual = run.believed
        self.rise.restart()
        self.fall.restart()

    def fade(self, by: float) -> None:
        """Nothing was tested."""
        self.accepted *= by
        self.tested *= by
        self.usual *= by


def _moved(by: float) -> list[tuple[float, float]]:
    """What a guess that stood, and one that did not, says for odds that moved, by the chance that
    was believed."""
    found = []
    for part in range(PARTS):
        odds = (part + 0.5) / (PARTS - part - 0.5)
        chance, other = odds / (1.0 + odds), odds * math.exp(by)
        other /= 1.0 + other
        found.append((math.log(other / chance), math.log((1.0 - other) / (1.0 - chance))))
    return found


# By the chance that was believed: what a guess that stood says for odds that have risen, one that
# fell, and both for odds that have fallen.
SAYS = [(*up, *down) for up, down in zip(_moved(MOVED), _moved(-MOVED), strict=True)]
