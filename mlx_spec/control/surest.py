"""``Surest``: of guesses that were computed, those are verified that are likeliest to stand.

What one decoder does with ``confidence``: it holds what was said of the step on its way, compares
it with what came, and knows of each row how much better or worse than usual it goes.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from mlx_spec.control.allocation import Prices, StepBudget, expected_budget, fill, worth
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.ends import weighed
from mlx_spec.control.looked_up import by_need
from mlx_spec.control.offers import NOBODY
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, evidence_of, known_evidence


@dataclass(frozen=True)
class Settling:
    """A step that was settled on.

    Attributes:
        picks: which offer each row takes, or ``NOBODY``.
        lengths: guesses that each may have.
        reaching: of rows that take an offer, how likely each guess stands with all before it.
        verify: seconds of a pass by the guesses that it verifies.
        speed: tokens per second that time is worth.
        weights: what a token is worth to each row; None where all are worth the same.
        picked: whether fewer than ``lengths`` may be verified; else it is only learned from.
    """

    picks: Seq[int]
    lengths: Seq[int]
    reaching: Seq[Seq[float]]
    verify: Seq[float]
    speed: float
    weights: Seq[float] | None = None
    picked: bool = True


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

    def pick(self, rows: Seq[Row], sure: Seq[Seq[float]], settling: Settling) -> list[int]:
        """Guesses of each row that are verified."""
        reaching, self._said = [], {}
        for place, row in enumerate(rows):
            most = settling.lengths[place]
            if settling.picks[place] != NOBODY:
                reaching.append(settling.reaching[place])
                continue
            self._said[row] = sure[place]
            chances = self.confidence.reaching(sure[place][:most], self._times(row))
            reaching.append(chances)
        self.confidence.say(list(self._said.values()))
        if not settling.picked:
            return list(settling.lengths)
        reaching = weighed(reaching, settling.weights)
        guesses = worth(reaching, settling.verify, settling.speed)
        return fill(reaching, StepBudget(0, guesses, 0.0, 1.0), by_need(rows))

    def observe(self, report: StepReport) -> None:
        """Compare what came with what was said of it."""
        said, self._said = self._said, {}
        for row, length, accepted in zip(report.rows, report.lengths, report.accepted, strict=True):
            if not length or accepted < 0 or row not in said:
                continue
            own = said[row][:length]
            tested = own[: accepted + 1]
            evidence = evidence_of(row, self.source)
            promised = sum(map(self.confidence.chance, tested))
            evidence.promised = self.MEMORY * evidence.promised + promised
            evidence.kept = self.MEMORY * evidence.kept + min(accepted, len(own))
            self.confidence.add(own, accepted)

    def _times(self, row: Row) -> float:
        """How much better or worse than usual a row's guesses come true."""
        evidence = known_evidence(row, self.source)
        if evidence is None:
            return 1.0
        return (evidence.kept + self.PRIOR) / (evidence.promised + self.PRIOR)
