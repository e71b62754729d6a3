"""``CostlyDraft``: all that a policy knows of one drafter that computes its guesses."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.control.acceptance import AcceptanceEstimate
from mlx_spec.control.allocation import Prices, best_budget
from mlx_spec.control.ends import Ends, weighed
from mlx_spec.control.joins import JoinCost
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, room_of
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.control.surest import Prospect as Prospect
from mlx_spec.control.surest import Surest


class CostlyDraft:
    """One drafter of one decoder: how often it is right, what it costs, whose texts it has read.

    Args:
        name: as prices and reports call it.
        most: guesses at once.
        prices: of steps.
        pair: what any decoder has learned of it.
    """

    # While less was tested, no more than so many guesses: a hostile one is found out cheaply.
    THIN, AT_FIRST = 6.0, 2

    def __init__(self, name: str, most: int, prices: StepPrices, pair: PairMeasurements) -> None:
        self.name, self.most = name, most
        self._prices = prices
        self.acceptance = AcceptanceEstimate(pair.acceptance, name)
        self.joins = JoinCost(pair.reading, name)
        self.surest = Surest(pair.confidence, name)

    def longest(self, room: Seq[int]) -> int:
        """The most guesses that any row may be given now."""
        return min(self.most, max(room, default=0), self.AT_FIRST if self.thin else self.most)

    @property
    def thin(self) -> bool:
        """Whether little was tested of it lately."""
        return self.acceptance.average.tested < self.THIN

    @property
    def new(self) -> bool:
        """Whether next to nothing was ever tested of it."""
        return self.acceptance.average.looked < self.THIN

    def promise(self, rows: Seq[Row], ends: Ends) -> float | None:
        """The most tokens per second, None while nothing is known of it."""
        if not self.acceptance.average.known:
            return None
        view = self.prospect(rows, ends)
        return max(view.best.speed, view.plain)

    def strangest(self, rows: Seq[Row]) -> list[int]:
        """Rows in the order of how little was tested of them lately, the least first."""
        return sorted(range(len(rows)), key=lambda row: self.acceptance.tested(rows[row]))

    def prospect(
        self, rows: Seq[Row], ends: Ends, *, picks: bool = False, room: Seq[int] = ()
    ) -> Prospect:
        """What is promised at best, and what plain decoding is.

        Args:
            rows: the batch.
            ends: what is known of how rows end.
            picks: whether guesses can be picked once they are seen.
            room: as ``room_of`` says; asked anew where it is not given.
        """
        room = room or room_of(rows)
        longest = self.longest(room)
        reaching: list[Seq[float]] = list(self.acceptance.reaching(rows, longest))
        if min(room, default=0) < longest:
            reaching = [row[:most] for row, most in zip(reaching, room, strict=True)]
        prices = self.prices(rows, longest)
        alike = {id(row): row for row in reaching}  # those that are equal are mostly one
        sums = {key: sum(row[:3]) for key, row in alike.items()}
        brings = [sums[id(row)] for row in reaching]
        alone = self._prices.curve(1, 0, keys_of(rows[:1]))[0]
        weights = ends.weights(rows, brings, prices.verify[0], alone)
        reaching = weighed(reaching, weights)
        picks = picks and prices.packs and self.surest.confidence.known
        budget = self.surest.budget(len(rows), prices) if picks else best_budget(reaching, prices)
        return Prospect(reaching, prices, budget, len(rows) / prices.verify[0], weights, picks)

    def prices(self, rows: Seq[Row], longest: int, most: int = 0) -> Prices:
        """Of steps in which this drafts up to ``longest`` guesses, and up to ``most`` are
        verified."""
        count, prices = len(rows), self._prices
        # New texts are read for drafts alone, whatever their length.
        reading = self.joins.seconds
        draft = prices.drafts(self.name, count, longest)
        return Prices(
            prices.curve(count, max(most, count * longest), keys_of(rows)),
            [draft[0], *(seconds + reading for seconds in draft[1:])],
            prices.packs,
        )

    def risk(self, tokens: int) -> float:
        """Seconds that verifying so many tokens may take beyond what is thought."""
        return self._prices.risk(tokens)

    def observe(self, report: StepReport) -> None:
        """Learn from a step, of which ``report`` says what is this drafter's."""
        usual = None
        if not report.clean:
            work = report.work
            usual = self._prices.verify(work.tokens, work.rows, work.keys)
            usual += self._prices.draft(self.name, work.rows, report.passes.get(self.name, 0))
        self.acceptance.observe(report)
        self.surest.observe(report)
        self.joins.observe(report, usual)


def keys_of(rows: Seq[Row]) -> int:
    """Keys that a pass reads: those of the longest row for each."""
    return len(rows) * max((row.length for row in rows), default=0)
