"""``GivenGuesses``: nothing is guessed but what requests bring themselves.

Where nobody has asked for guesses, a constraint still forces tokens now and then: verified together
they cost next to nothing, and spare their row steps. The other rows pay nothing for them, so a pass
that cannot be packed takes no row further than its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from mlx_spec.control.offers import NOBODY, FixedSources, Offer, Settled
from mlx_spec.control.row import Row


class GivenGuesses(FixedSources):
    """Takes what those say that look up, who are asked only while they have something to say.

    Args:
        length: most guesses of a row.
        asks: whether somebody who looks up has something to say of the next step.
        packs: whether a pass may take any number of tokens from each row; asked where it matters.
    """

    def __init__(self, length: int, asks: Callable[[], bool], packs: Callable[[], bool]) -> None:
        super().__init__(length)
        self._asks, self._packs = asks, packs

    def choose(self, rows: Seq[Row]) -> list[int]:
        """As much as rows have room for; :meth:`settle` cuts it."""
        return super().choose(rows) if self._asks() else [0] * len(rows)

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """What each row is offered, or as much of it as all of them are."""
        settled = super().settle(rows, offers, covered)
        least = min(settled.lengths)
        if least == max(settled.lengths) or self._packs():
            return settled
        picks = settled.picks if least else [NOBODY] * len(rows)
        return Settled(picks, [least] * len(rows), costly=False)
