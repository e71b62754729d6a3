"""``LookedUp``: what is verified of guesses that were looked up, alone or beside computed ones.

Once those who look up have answered, two steps are compared, each with its best budget::

    what was found alone                       T(verify M)
    what is better, found or computed, by row  T(verify M) + T(draft K)

What is certain (a grammar forces it) is taken before anything else. Where eight answers in a row
were not worth their verification, nobody is asked for a while, and steps are built ahead again.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.allocation import Prices, StepBudget, fill, spend
from mlx_spec.control.ends import weighed
from mlx_spec.control.found import Findings, Found
from mlx_spec.control.offers import NOBODY, Offer, Settled
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row


@dataclass(frozen=True)
class Computed:
    """What a costly drafter would guess.

    Attributes:
        reaching: for each row and guess, how likely it stands with all before it; none where it
            cannot guess.
        passes: that it takes.
    """

    reaching: list[Seq[float]]
    passes: int

    def weighed(self, weights: Seq[float] | None) -> Computed:
        """By what a token of each row is worth."""
        return replace(self, reaching=weighed(self.reaching, weights)) if self.passes else self


class LookedUp:
    """Those who look up: whether they are asked, and what of their offers is taken.

    Args:
        average: acceptance over all texts, of those who do not say their chances.
        rest: steps for which nobody is asked, and the fewest between two trials of what is not
            worth it.

    Attributes:
        asked: whether guesses are wanted now.
    """

    PARK_AFTER = 8  # offers in a row of which nothing was worth its verification
    TRIAL_SHARE = 0.01  # of the time

    def __init__(self, average: AverageAcceptance, rest: int) -> None:
        self._findings, self._rest = Findings(average), rest
        self.asked = True
        self._resting = self._refused = self._untested = 0
        self._before = (True, 0)

    def wakes(self) -> bool:
        """Another step; whether those who rested are asked again from now on."""
        self._before = (self.asked, self._resting)
        if self.asked:
            return False
        self._resting += 1
        if self._resting >= self._rest:
            self.asked, self._resting = True, 0
        return self.asked

    def forget(self) -> None:
        """That step was dropped."""
        self.asked, self._resting = self._before

    def weigh(self, rows: Seq[Row], offers: Seq[Offer]) -> Found:
        """The offer that each row expects most of."""
        return self._findings.weigh(rows, offers)

    def settle(self, rows: Seq[Row], found: Found, computed: Computed, prices: Prices) -> Settled:
        """The best step with what was found, and perhaps with what would be computed."""
        alone = spend(found.reaching, 0, prices)
        best, beside = alone, found
        # So many passes were planned for all rows; those that lack a guess may be worth fewer.
        for passes in {computed.passes, (computed.passes + 1) // 2, 1} if computed.passes else ():
            both = _beside(found, [row[:passes] for row in computed.reaching])
            budget = spend(both.reaching, passes, prices)
            if NOBODY in both.picks and budget.speed > best.speed:
                best, beside = budget, both
        if best is not alone:
            return _taken(rows, beside, best, costly=True)
        self._refused = 0 if alone.guesses else self._refused + 1
        if self._refused >= self.PARK_AFTER:
            self.asked, self._refused = False, 0
        if not alone.guesses:
            alone = self._trial(found, prices)
        return _taken(rows, found, alone, costly=False)

    def _trial(self, found: Found, prices: Prices) -> StepBudget:
        """One guess, if nothing was verified for so long that it costs next to nothing."""
        rows, verify = len(found.picks), prices.verify
        guesses = 1 if prices.packs else rows
        price = verify[guesses] - verify[0]
        due = price <= self.TRIAL_SHARE * self._untested * verify[0]
        if self._untested < self._rest or not due:
            guesses = 0
        return StepBudget(0, guesses, float(rows), verify[guesses])

    def observe(self, report: StepReport) -> None:
        """Compare what came with what was promised."""
        self._findings.observe(report)
        looked_up = self._findings.sources
        tested = any(by in looked_up for by in report.sources)
        self._untested = 0 if tested else self._untested + 1


def _beside(found: Found, computed: Seq[Seq[float]]) -> Found:
    """For each row what was found or what would be computed, whichever promises more."""
    picks, reaching = list(found.picks), list(found.reaching)
    for row, own in enumerate(computed):
        if not found.certain[row] and sum(own) > sum(reaching[row]):
            picks[row], reaching[row] = NOBODY, own
    return replace(found, picks=picks, reaching=reaching)


def _taken(rows: Seq[Row], found: Found, budget: StepBudget, *, costly: bool) -> Settled:
    lengths = fill(found.reaching, budget, by_need(rows))
    picks = [pick if n else NOBODY for pick, n in zip(found.picks, lengths, strict=True)]
    own = any(n for pick, n in zip(picks, lengths, strict=True) if pick == NOBODY)
    return Settled(picks, lengths, costly=costly and own)


def by_need(rows: Seq[Row]) -> Iterator[int]:
    """Rows in the order of what they have yet to say, the most first; sorted once it is asked."""
    yield from sorted(range(len(rows)), key=lambda row: -rows[row].remaining)
