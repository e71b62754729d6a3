"""Those who know: what policies are compared with."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul

from mlx_spec.control.allocation import Prices, StepBudget, best_budget, fill, worth
from mlx_spec.control.offers import NOBODY, Settled
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import room_of

from .machines import DRAFTER, Machine, TruePrices
from .play import SimulatedRow


class Clairvoyant:
    """A policy that knows what each step costs and how likely each guess is."""

    def __init__(self, machine: Machine, most: int) -> None:
        self._prices, self._most = TruePrices(machine), most

    def choose(self, rows: Seq[SimulatedRow]) -> list[int]:
        """The step with the most expected tokens per second."""
        reaching, prices = self._known(rows)
        best, count = best_budget(reaching, prices), len(rows)
        if best.speed <= count / prices.verify[0]:
            return [0] * count
        return fill([row[: best.passes] for row in reaching], best, range(count))

    def _known(self, rows: Seq[SimulatedRow]) -> tuple[list[list[float]], Prices]:
        room = room_of(rows)
        reaching = [
            row.reaching(min(most, self._most)) for row, most in zip(rows, room, strict=True)
        ]
        count, longest = len(rows), max(map(len, reaching), default=0)
        draft = [self._prices.draft(DRAFTER, count, passes) for passes in range(longest + 1)]
        curve = self._prices.curve(count, count * longest)
        return reaching, Prices(curve, draft, self._prices.packs)

    def observe(self, report: StepReport) -> None:
        """It knows."""

    def forget(self) -> None:
        """It keeps nothing."""


@dataclass(frozen=True)
class Known:
    """What one knows who has heard a drafter for ever.

    Attributes:
        speed: tokens per second that time is worth: what is reached in the end.
        usual: chance of a guess of which nothing was said yet.
        bold: of what the next guess is likely to bring, what is asked for its pass; None: nothing
            is drafted at all.
    """

    speed: float
    usual: float
    bold: float | None = 1.0


class Hearer(Clairvoyant):
    """Hears the true chance of each guess once it is made, and knows all else beforehand."""

    picks = True

    def __init__(self, machine: Machine, most: int, known: Known) -> None:
        super().__init__(machine, most)
        self.knows = known

    def choose(self, rows: Seq[SimulatedRow]) -> list[int]:
        """As many as there may be, or none."""
        return [0 if self.knows.bold is None else min(self._most, n) for n in room_of(rows)]

    def settle(self, rows: Seq[SimulatedRow], offers: object, covered: object) -> Settled:
        """All are asked."""
        return Settled([NOBODY] * len(rows), self.choose(rows), costly=True, reads=True)

    def enough(self, rows: Seq[SimulatedRow], sure: Seq[Seq[float]]) -> bool:
        """Whether another guess of each row costs more than it is likely to bring."""
        _, prices = self._known(rows)
        knows, verify, made = self.knows, prices.verify, len(sure[0])
        slope = knows.speed * (verify[-1] - verify[0]) / (len(verify) - 1)
        gain = sum(max(0.0, prod(row) * knows.usual - slope) for row in sure)
        cost = knows.speed * (prices.draft[made + 1] - prices.draft[made])
        return gain <= (knows.bold or 0.0) * cost

    def pick(self, rows: Seq[SimulatedRow], sure: Seq[Seq[float]]) -> list[int]:
        """Those whose expected tokens are furthest above what their time is worth."""
        reaching = [list(accumulate(row, mul)) for row in sure]
        _, prices = self._known(rows)
        count, verify, speed = len(rows), prices.verify, self.knows.speed
        if not prices.packs:
            value = [
                sum(sum(row[:n]) for row in reaching) - speed * verify[n * count]
                for n in range(len(sure[0]) + 1)
            ]
            return [value.index(max(value))] * count
        guesses, _ = worth(reaching, verify, speed)
        return fill(reaching, StepBudget(0, guesses, 0.0, 1.0), range(count))
