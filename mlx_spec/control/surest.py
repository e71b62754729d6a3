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
from dataclasses import dataclass

from mlx_spec.control.allocation import Prices, StepBudget, fill, fixed_budget, worth
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.ends import weighed
from mlx_spec.control.filling import Filling
from mlx_spec.control.looked_up import by_need
from mlx_spec.control.offers import NOBODY
from mlx_spec.control.replay import gain, replay, slope_of
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import KnownRows, Row


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


class Surest:
    """One decoder's picking among one drafter's guesses.

    Args:
        confidence: of all texts of the pair.
        source: the drafter, by name.
    """

    MEMORY = 0.93  # share of the past that each step of a row keeps
    PRIOR = 6.0  # guesses that what is usual weighs
    # How many more or fewer rows than before are taken for as many, as a share; steps of a row that
    # what picking brings is counted over, and that what was expected of it weighs.
    ALIKE, LATELY, EXPECTED = 0.125, 64.0, 24.0
    RENEW = 8  # steps after which it is looked again at how likely a guess follows another
    HOPE = 0.3  # usual deviation of what a step brings, as a share

    def __init__(self, confidence: Confidence, source: str = "") -> None:
        self.confidence = confidence
        self._known = KnownRows(source)
        self._said: dict[Row, Seq[float]] = {}
        self._kept: Promise | None = None
        self._usual, self._until = confidence.usual(1), 0
        # Of the step that is being drafted: what it is, what was said, how likely it stands.
        self._settling: Settling | None = None
        self._heard: Seq[Seq[float]] = ()
        self._times: list[float] = []
        self._reaching: list[list[float]] = []

    def budget(self, rows: int, prices: Prices) -> StepBudget:
        """An average step of so many rows that picks: as such steps were lately, or, where there
        were none, as rows that were heard allow."""
        kept, most, plain = self._kept, len(prices.draft) - 1, rows / prices.verify[0]
        heard = self.confidence.heard
        new = kept is None or not kept.holds(rows, most, heard)
        if new or heard >= self._until:
            self._usual, self._until = self.confidence.usual(most), heard + self.RENEW * rows
        if kept is None or new:
            step, weight = replay(self._usual, rows, prices), min(self.EXPECTED, heard)
            until = 2 * heard if heard < self.EXPECTED else None
            brought = weight * step.speed / plain
            kept = self._kept = Promise(rows, most, step, heard, brought, weight, until)
        # Few rows that were heard may have been unlucky; to hear more costs little where it nearly
        # pays.
        hope = self.HOPE * max(0.0, max(heard, 1) ** -0.5 - self.LATELY**-0.5)
        hope *= min(1.0, self.confidence.times) ** 2  # of one that boasts there is little
        return kept.of(rows, plain * (1.0 + hope))

    def fixed_budget(self, rows: int, prices: Prices) -> StepBudget:
        """The same where the number of guesses is fixed before they are seen."""
        usual = self.confidence.usual(len(prices.draft) - 1)
        return fixed_budget(usual.reaching, rows, prices)

    def filling(
        self, rows: Seq[Row], most: Seq[int], guesses: int, weights: Seq[float] | None
    ) -> Filling:
        """How the device gives so many guesses to rows; arguments as ``Filling`` has them."""
        return Filling(most, guesses, self.confidence.worth, self._often(rows), weights)

    def enough(self, rows: Seq[Row], sure: Seq[Seq[float]], settling: Settling) -> bool:
        """Whether another guess of each row is not worth its pass.

        Args:
            rows: the batch.
            sure: how probable the drafter thinks each guess so far, by row: one more of each with
                every call for one step.
            settling: what was settled on.
        """
        view, guesses = settling.view, len(sure[0])
        if not view.picked:
            return guesses >= max(settling.lengths)
        drafting = view.prices.draft
        if guesses + 1 >= len(drafting):
            return True
        self._hear(rows, sure, settling)
        asking = zip(self._reaching, settling.lengths, settling.picks, strict=True)
        reached = [row[-1] for row, most, pick in asking if pick == NOBODY and most > guesses]
        following = self._usual.following
        next_one = following[min(guesses, len(following) - 1)]
        worth_more = gain(reached, next_one, slope_of(view.prices, view.speed))
        return worth_more <= view.speed * (drafting[guesses + 1] - drafting[guesses])

    def pick(self, rows: Seq[Row], sure: Seq[Seq[float]], settling: Settling) -> list[int]:
        """Guesses of each row that are verified; arguments as for :meth:`enough`."""
        own = [place for place, pick in enumerate(settling.picks) if pick == NOBODY]
        self._said = {rows[place]: sure[place] for place in own}
        self.confidence.say([sure[place] for place in own])
        if not settling.view.picked:
            return list(settling.lengths)
        self._hear(rows, sure, settling)
        reaching = list(settling.found)
        for place in own:
            reaching[place] = self._reaching[place][: settling.lengths[place]]
        reaching = weighed(reaching, settling.weights)
        view, made = settling.view, len(sure[0])
        guesses, brings = worth(reaching, view.prices.verify, view.speed)
        if self._kept is not None:
            seconds = view.prices.verify[guesses] + view.prices.draft[made]
            self._kept.add(len(rows), (len(rows) + brings) / (view.plain * seconds))
            self._kept.heard = self.confidence.heard
        return fill(reaching, StepBudget(0, guesses, 0.0, 1.0), by_need(rows))

    def _hear(self, rows: Seq[Row], sure: Seq[Seq[float]], settling: Settling) -> None:
        """How likely what was said stands, of which only the last is new."""
        if sure is self._heard and settling is self._settling:
            return
        guesses, known = len(sure[0]), len(self._reaching[0]) if self._reaching else 0
        if settling is not self._settling or guesses <= known:
            self._settling, known = settling, 0
            self._times = self._often(rows)
            self._reaching = [[] for _ in rows]
        self._heard = sure
        for place in range(known, guesses):
            chances = self.confidence.next([said[place] for said in sure], self._times)
            if not place:
                self._reaching = [[chance] for chance in chances]
                continue
            for row, chance in zip(self._reaching, chances, strict=True):
                row.append(row[-1] * chance)

    def _often(self, rows: Seq[Row]) -> list[float]:
        """How much oftener than by what is said guesses of each row come true."""
        often, prior = self.confidence.times, self.PRIOR
        known = self._known.of(rows)
        return [(row.kept + prior * often) / (row.promised + prior) for row in known]

    def observe(self, report: StepReport) -> None:
        """Compare what came with what was said of it."""
        if report.said:
            heard = zip(report.rows, report.said, report.accepted, strict=True)
            self._said = {row: said for row, said, count in heard if said and count >= 0}
            self.confidence.say(list(self._said.values()))
        told, self._said = self._said, {}
        if not told:
            return
        told_of, verified, stood = [], [], []
        records = self._known.of(report.rows)
        of_rows = zip(report.rows, records, report.lengths, report.accepted, strict=True)
        for row, record, length, accepted in of_rows:
            if length and accepted >= 0 and row in told:
                told_of.append(record)
                own = told[row][:length]
                verified.append(own)
                stood.append(min(accepted, len(own)))
        keep, promised = self.MEMORY, self.confidence.add(verified, stood)
        for one, were_to, came in zip(told_of, promised, stood, strict=True):
            one.promised = keep * one.promised + were_to
            one.kept = keep * one.kept + came


@dataclass
class Promise:
    """What picking promises.

    Attributes:
        rows, most: of the step: rows, and guesses of each.
        step: an average one, as it was expected.
        heard: rows that had been heard by then.
        brought: times what plain decoding says in the same time, of each row and step lately, ...
        weight: ... and of how many.
        until: rows heard, from which on it is too old; None: never.
    """

    rows: int
    most: int
    step: StepBudget
    heard: int
    brought: float
    weight: float
    until: int | None = None

    def holds(self, rows: int, most: int, heard: int) -> bool:
        """For about as many rows, while nothing was heard but of steps that are counted."""
        near = abs(rows - self.rows) <= Surest.ALIKE * self.rows
        near = near and (self.until is None or heard < self.until)
        return near and most == self.most and heard == self.heard

    def add(self, rows: int, times: float) -> None:
        """Count a step."""
        keep = max(0.0, 1.0 - rows / Surest.LATELY)
        self.brought = keep * self.brought + rows * times
        self.weight = keep * self.weight + rows

    def of(self, rows: int, plain: float) -> StepBudget:
        """The step, of so many rows, where plain decoding is so fast now."""
        step, share = self.step, rows / self.rows
        tokens, times = share * step.tokens, self.brought / self.weight
        guesses = max(1, round(share * step.guesses)) if step.guesses else 0
        return StepBudget(step.passes, guesses, tokens, tokens / (times * plain))
