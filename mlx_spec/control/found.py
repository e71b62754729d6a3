"""What was found for the rows of a step: what it is expected to bring, and what came true.

A drafter that looks up says how likely each guess is. How far that can be trusted is measured; one
that does not say is taken at its usual acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

from mlx_spec.control.acceptance import AcceptanceEstimate, AverageAcceptance
from mlx_spec.control.ends import weighed
from mlx_spec.control.offers import NOBODY, Offer
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row


class Calibration:
    """What came true of the chances that one drafter gave, over all rows."""

    MEMORY = 0.98  # share of the past that each row's step keeps
    PRIOR = 8.0  # tokens that its own word weighs

    def __init__(self) -> None:
        self._promised = self._kept = 0.0

    @property
    def factor(self) -> float:
        """Times which its chances come true."""
        return (self._kept + self.PRIOR) / (self._promised + self.PRIOR)

    def add(self, chances: Seq[float], accepted: int) -> None:
        """Count a row of which so many guesses were accepted; what follows was not tested."""
        tested = chances[: accepted + 1]
        self._promised = self.MEMORY * self._promised + sum(tested)
        self._kept = self.MEMORY * self._kept + accepted


@dataclass(frozen=True)
class Found:
    """The best offer for each row.

    Attributes:
        picks: which offer; ``NOBODY`` where there is none.
        lengths: guesses of it.
        reaching: how likely each of them stands with all before it: the tokens it brings.
        certain: whether it is certain: what says otherwise is wrong, however much it says.
    """

    picks: list[int]
    lengths: list[int]
    reaching: list[Seq[float]]
    certain: list[bool]

    def weighed(self, weights: Seq[float] | None) -> Found:
        """By what a token of each row is worth."""
        return replace(self, reaching=weighed(self.reaching, weights))


class Findings:
    """What is thought of the drafters that look up, each by itself.

    Args:
        average: acceptance over all texts, of those that do not say their chances.
    """

    CERTAIN = 0.9  # share of what is called certain that must have come true

    def __init__(self, average: AverageAcceptance) -> None:
        self._average = average
        self._checks: dict[str, Calibration] = {}
        self._estimates: dict[str, AcceptanceEstimate] = {}
        self._promised: dict[str, list[Seq[float]]] = {}  # of the step on its way

    def weigh(self, rows: Seq[Row], offers: Seq[Offer]) -> Found:
        """The offer that each row expects most of; what is certain comes first."""
        chances = [self._chances(rows, offer) for offer in offers]
        self._promised = {o.source: said for o, said in zip(offers, chances, strict=True)}
        factors = [self._check(offer.source).factor for offer in offers]
        found = Found([], [], [], [])
        for row in range(len(rows)):
            made = [number for number, offer in enumerate(offers) if offer.lengths[row]]
            sure = [n for n in made if min(chances[n][row]) >= 1.0 and factors[n] >= self.CERTAIN]
            reaching = {n: _reaching(chances[n][row], factors[n]) for n in made}
            best = max(made, key=lambda number: sum(reaching[number]), default=NOBODY)
            pick = sure[0] if sure else best
            found.picks.append(pick)
            found.lengths.append(0 if pick == NOBODY else offers[pick].lengths[row])
            found.reaching.append(() if pick == NOBODY else reaching[pick])
            found.certain.append(bool(sure))
        return found

    @property
    def sources(self) -> set[str]:
        """Who has ever offered something, by name."""
        return set(self._estimates)

    def observe(self, report: StepReport) -> None:
        """Compare what came with what was promised for the rows of the last step."""
        if not report.sources:
            return
        for source, promised in self._promised.items():
            self._estimate(source).observe(report.of(source))
            for row, by in enumerate(report.sources):
                accepted, length = report.accepted[row], report.lengths[row]
                if by == source and accepted >= 0 and length:
                    self._check(source).add(promised[row][:length], min(accepted, length))
        self._promised = {}

    def _chances(self, rows: Seq[Row], offer: Offer) -> list[Seq[float]]:
        if offer.chances is not None:
            return list(offer.chances)
        usual = self._estimate(offer.source)
        return [usual.chances(row, n) for row, n in zip(rows, offer.lengths, strict=True)]

    def _check(self, source: str) -> Calibration:
        return self._checks.setdefault(source, Calibration())

    def _estimate(self, source: str) -> AcceptanceEstimate:
        return self._estimates.setdefault(source, AcceptanceEstimate(self._average, source))


def _reaching(chances: Seq[float], factor: float) -> list[float]:
    return list(accumulate((min(1.0, chance * factor) for chance in chances), mul))
