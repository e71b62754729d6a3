"""``Surest``: of guesses that are computed, those are verified that are likeliest to stand.

What one decoder does with ``confidence``: it holds what was said of the step on its way, compares
it with what came, and knows of each row how much better or worse than usual it goes. Time is worth
the tokens that it usually brings, not those of this very step::

    guess 1 of all rows read    is the 2nd worth a pass?    and how many of all are worth verifying?
    r1  .9                      .9 x .4 ...  yes            .9 | .9 .8 | .3 .1
    r2  .3                      .3 x .4
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import prod

from mlx_spec.control.allocation import (
    Prices,
    StepBudget,
    expected_budget,
    fill,
    fixed_budget,
    worth,
)
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.ends import weighed
from mlx_spec.control.filling import Filling
from mlx_spec.control.looked_up import by_need
from mlx_spec.control.offers import NOBODY
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, evidence_of, known_evidence


@dataclass(frozen=True)
class Prospect:
    """What drafting promises for the rows as they stand.

    Attributes:
        reaching: for each row and guess, how likely it stands with all before it, times what a
            token is worth to the row.
        prices: of the steps to choose from.
        best: of these, among those that draft.
        plain: tokens per second without a draft.
        weights: what a token is worth to each row; None where all are worth the same.
        picked: whether ``best`` asks all rows for guesses, which are picked once they are seen.
    """

    reaching: list[Seq[float]]
    prices: Prices
    best: StepBudget
    plain: float
    weights: Seq[float] | None = None
    picked: bool = False

    @property
    def speed(self) -> float:
        """Tokens per second that time is worth."""
        return max(self.best.speed, self.plain)


@dataclass(frozen=True)
class Settling:
    """A step that was settled on.

    Attributes:
        picks: which offer each row takes, or ``NOBODY``.
        lengths: guesses that each may have.
        found: of rows that take an offer, how likely each guess of it stands with all before it.
        view: what was expected.
        weights: what a token is worth to each row; None where all are worth the same.
    """

    picks: Seq[int]
    lengths: Seq[int]
    found: Seq[Seq[float]]
    view: Prospect
    weights: Seq[float] | None = None


@dataclass
class Surest:
    """One decoder's picking among one drafter's guesses.

    Attributes:
        confidence: of all texts of the pair.
        source: the drafter, by name.
    """

    MEMORY = 0.93  # share of the past that each step of a row keeps
    PRIOR = 6.0  # guesses that what is usual weighs

    confidence: Confidence
    source: str = ""
    _said: dict[Row, Seq[float]] = field(default_factory=dict)

    def budget(self, rows: int, prices: Prices) -> StepBudget:
        """The step that promises most, of so many rows."""
        return expected_budget(self.confidence.usual(len(prices.draft) - 1), rows, prices)

    def fixed_budget(self, rows: int, prices: Prices) -> StepBudget:
        """The same where the number of guesses is fixed before they are seen."""
        return fixed_budget(self.confidence.usual(len(prices.draft) - 1), rows, prices)

    def filling(
        self, rows: Seq[Row], most: Seq[int], guesses: int, weights: Seq[float] | None
    ) -> Filling:
        """How the device gives so many guesses to rows; arguments as ``Filling`` has them."""
        times = [self._times(row) for row in rows]
        return Filling(most, guesses, self.confidence.worth, times, weights)

    def enough(self, rows: Seq[Row], sure: Seq[Seq[float]], settling: Settling) -> bool:
        """Whether another guess of each row is not worth its pass.

        Args:
            rows: the batch.
            sure: how probable the drafter thinks each guess so far, by row.
            settling: what was settled on.
        """
        view, guesses = settling.view, len(sure[0])
        drafting, verify = view.prices.draft, view.prices.verify
        if not view.picked:
            return guesses >= max(settling.lengths)
        if guesses + 1 >= len(drafting):
            return True
        # What verifying a guess more costs, on average over the pass.
        slope = view.speed * (verify[-1] - verify[0]) / (len(verify) - 1)
        next_one = self.confidence.following(guesses)
        gain = 0.0
        for row, said, most, pick in zip(rows, sure, settling.lengths, settling.picks, strict=True):
            if pick == NOBODY and most > guesses:
                reach = prod(self.confidence.reaching(said, self._times(row))[-1:])
                gain += max(0.0, reach * next_one - slope)
        return gain <= view.speed * (drafting[guesses + 1] - drafting[guesses])

    def pick(self, rows: Seq[Row], sure: Seq[Seq[float]], settling: Settling) -> list[int]:
        """Guesses of each row that are verified; arguments as for :meth:`enough`."""
        reaching: list[Seq[float]] = []
        self._said = {}
        for place, row in enumerate(rows):
            if settling.picks[place] != NOBODY:
                reaching.append(settling.found[place])
                continue
            self._said[row] = sure[place]
            said = sure[place][: settling.lengths[place]]
            reaching.append(self.confidence.reaching(said, self._times(row)))
        self.confidence.say(list(self._said.values()))
        if not settling.view.picked:
            return list(settling.lengths)
        reaching = weighed(reaching, settling.weights)
        guesses = worth(reaching, settling.view.prices.verify, settling.view.speed)
        return fill(reaching, StepBudget(0, guesses, 0.0, 1.0), by_need(rows))

    def observe(self, report: StepReport) -> None:
        """Compare what came with what was said of it."""
        if report.said:
            heard = zip(report.rows, report.said, report.accepted, strict=True)
            self._said = {row: said for row, said, count in heard if said and count >= 0}
            self.confidence.say(list(self._said.values()))
        said, self._said = self._said, {}
        if not said:
            return
        for row, length, accepted in zip(report.rows, report.lengths, report.accepted, strict=True):
            if not length or accepted < 0 or row not in said:
                continue
            own = said[row][:length]
            evidence = evidence_of(row, self.source)
            promised = sum(map(self.confidence.chance, own[: accepted + 1]))
            evidence.promised = self.MEMORY * evidence.promised + promised
            evidence.kept = self.MEMORY * evidence.kept + min(accepted, len(own))
            self.confidence.add(own, accepted)

    def _times(self, row: Row) -> float:
        """How much oftener than usual a row's guesses come true."""
        evidence = known_evidence(row, self.source)
        if evidence is None:
            return 1.0
        return (evidence.kept + self.PRIOR) / (evidence.promised + self.PRIOR)
