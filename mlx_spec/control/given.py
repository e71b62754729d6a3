"""``GivenGuesses``: nothing is guessed but what requests bring themselves.

Where nobody has asked for guesses, a constraint still forces tokens now and then: verified together
they spare their row steps. The other rows lose nothing for them: beside rows that bring none a pass
is dearer only as often as a ``Ration`` allows, and a pass that cannot be packed takes no row
further than its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from mlx_spec.control.allocation import StepBudget, fill
from mlx_spec.control.looked_up import by_need
from mlx_spec.control.offers import NOBODY, FixedSources, Offer, Settled
from mlx_spec.control.ration import Ration
from mlx_spec.control.report import StepReport
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
        self._ration, self._rationed = Ration(), False

    def choose(self, rows: Seq[Row]) -> list[int]:
        """As much as rows have room for; :meth:`settle` cuts it."""
        return super().choose(rows) if self._asks() else [0] * len(rows)

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """What each row is offered, or some of it."""
        settled = super().settle(rows, offers, covered)
        self._rationed = not all(row.brings_guesses for row in rows)
        lengths, total = settled.lengths, sum(settled.lengths)
        least = min(lengths)
        if least == max(lengths):
            return settled
        if not self._packs():
            lengths = [least] * len(rows)
        elif self._rationed:
            allowed = self._ration.most(len(rows), total)
            step = StepBudget(0, allowed, float(len(rows)), 0.0)
            lengths = fill([[1.0] * n for n in lengths], step, by_need(rows))
        picks = [pick if n else NOBODY for pick, n in zip(settled.picks, lengths, strict=True)]
        return Settled(picks, lengths, costly=False)

    def observe(self, report: StepReport) -> None:
        """What a step took in which rows without guesses were asked to wait, or could have been."""
        if self._rationed:
            guesses = sum(report.lengths)
            self._ration.observe(len(report.rows), guesses, report.seconds, clean=report.clean)
        self._rationed = False

    def forget(self) -> None:
        """It was not taken, so that it takes nothing."""
        self._rationed = False
