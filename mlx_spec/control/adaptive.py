"""``AdaptiveDrafts``: whose guesses a step verifies, and how many, by expected tokens per second.

One budget for all that guess (``allocation``): drafters that compute, by their usual acceptance,
and those that look up, by the chances that they say. Plain decoding is the budget of no guess, so
speculation stops where it does not pay and returns where it does::

    drafting --- now and then a step that promises nearly as much, and is less known ---> drafting
    drafting --- the best step with a draft promises less than a plain one ------------> parked
    parked ----- it promises more, by the hysteresis ----------------------------------> drafting
    parked ----- it was left alone for so long that a probe costs 1% of that time -----> one probe
    parked ----- a probe came out better than was believed, or was the first:
                 on account of later ones ---------------------------------------------> another

Only acceptance is learned of users' requests; what steps cost is known before (``step_prices``).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import NamedTuple

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.acceptance import AverageAcceptance
from mlx_spec.control.allocation import Prices, StepBudget, best_budget, fill
from mlx_spec.control.demand import RowDemand
from mlx_spec.control.drafting import CostlyDraft, Prospect, keys_of
from mlx_spec.control.ends import Ends
from mlx_spec.control.looked_up import Computed, LookedUp, by_need
from mlx_spec.control.offers import NOBODY, Offer, Settled
from mlx_spec.control.probing import FIRST, find_probe
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, cap, room_of
from mlx_spec.control.step_prices import StepPrices
from mlx_spec.control.surest import Settling
from mlx_spec.control.turns import Turns


class Decision(NamedTuple):
    """What was decided, and since when; replaced as a whole, and taken back with a dropped step.

    Attributes:
        rows: whom it was decided for.
        lengths: guesses of each by the costly drafter.
        passes: the most of these while drafting; 0 while parked.
        left: further steps for which it stands.
        idle: steps since that drafter was last asked, as far as no probe was made on account.
        age: decisions since drafting began or ended.
        sure: steps since another one than the best was tried, while drafting.
        trials: such steps so far.
        filled: whether the device says whose the guesses are; as many as ``lengths`` add up to.
        near: whether a row may come so near its end, while this stands, that it must be asked.
    """

    rows: Seq[Row] = ()
    lengths: Seq[int] = ()
    passes: int = 0
    left: int = 0
    idle: int = 0
    age: int = 0
    sure: int = 0
    trials: int = 0
    filled: bool = False
    near: bool = True


class AdaptiveDrafts:
    """Chooses drafters and lengths, row by row.

    Args:
        config: maximum draft length, hysteresis and the fewest steps between probes.
        prices: of steps.
        costly: what is known of each drafter that computes.
        found: usual acceptance of what is looked up.
        asks: whether somebody who looks up has something to say of the next step.
        reads: whether it costs next to nothing to read, within a step, how sure a drafter is.
        demand: requests that want a row, where somebody knows of them.

    Attributes:
        costly, drafts: as ``SourceChoice`` has them.
    """

    PERIOD = 8  # steps for which a decision stands at most while rows do not change
    PROBE_SHARE = 0.01  # of the time
    STAY = 0.99  # of plain decoding, that drafting may promise less before it ends
    # How much better than believed drafts must have been for a probe to be followed by another,
    # as a logarithm, and probes on account, in intervals.
    PROMISING, ACCOUNT = 1.0, 4
    NEAR = 1.06  # times what another step promises, above which the best is surely better

    def __init__(
        self,
        config: SpeculationConfig,
        prices: StepPrices,
        costly: Seq[CostlyDraft] = (),
        found: AverageAcceptance | None = None,
        asks: Callable[[], bool] = lambda: False,
        *,
        reads: bool = False,
        demand: RowDemand | None = None,
    ) -> None:
        self._config, self._prices, self._asks = config, prices, asks
        self._drafters = {drafter.name: drafter for drafter in costly}
        self._lookups = LookedUp(found or AverageAcceptance(), config.probe_interval)
        self._ends = Ends(demand)
        self._reads = reads and prices.packs
        self._view: Prospect | None = None  # of the standing decision
        self._settling: Settling | None = None
        self._turns = Turns(list(self._drafters), config.probe_interval)
        self.costly, self.drafts = self._turns.next, False
        # Where calls before this one left off: those shorter than the time between two probes
        # would otherwise never probe.
        idle = costly[0].acceptance.average.untested if costly else 0
        self._standing = self._before = Decision(idle=idle)

    @property
    def free(self) -> bool:
        """Whether guesses that are looked up are wanted now."""
        return self._lookups.asked

    @property
    def turning(self) -> bool:
        """Whether another costly drafter is to be used from the next step on."""
        return self._turns.next != self.costly

    @property
    def picks(self) -> bool:
        """Whether guesses of the next step are picked once they are seen: where drafting goes on,
        and reading them costs nothing."""
        return self._reads and self.drafts

    def choose(self, rows: Seq[Row]) -> list[int]:
        """What the costly drafter may guess; while others look up, as much as rows have room for:
        they say themselves how far they go, and :meth:`settle` cuts it.
        """
        self._before = self._standing
        wakes = self._lookups.wakes()
        if self.turning:
            self.costly = self._turns.next
            self._standing = self._standing._replace(left=0, passes=0)
        if self.costly:
            self._decide(rows)
        lengths = list(self._standing.lengths) or [0] * len(rows)
        longest = max(lengths, default=0)
        if longest and self._standing.near:
            room = room_of(rows)
            if min(room) < longest:
                lengths = [min(n, most) for n, most in zip(lengths, room, strict=True)]
                longest = max(lengths)
        self.drafts = longest > 0
        if self.free and (wakes or self._asks()):
            return cap(room_of(rows), self._config.num_draft_tokens)
        return lengths

    def forget(self) -> None:
        """Put everything back as it was before the last choice."""
        self._standing = self._before
        self._lookups.forget()

    def _decide(self, rows: Seq[Row]) -> None:
        """Settle on the costly drafter's guesses for now, by what stands where nothing changed."""
        now = self._standing
        of, lengths, passes, left, idle, age, sure, trials, filled, near = now
        idle += 1
        if left > 0 and of == rows:
            idle = 0 if passes else idle
            self._standing = Decision(
                of, lengths, passes, left - 1, idle, age, sure + 1, trials, filled, near
            )
            return
        drafter, none, room = self._drafters[self.costly], [0] * len(rows), room_of(rows)
        if not any(room):
            self._standing = now._replace(rows=(), lengths=none, left=0)
            return
        view = self._view = self._prospect(drafter, rows, room)
        needed = view.plain * (self.STAY if now.passes else 1.0 + self._config.hysteresis)
        # A few rows are soon looked at, and what has begun a moment ago at once.
        left = min(len(rows) // 4, self.PERIOD, now.age)
        if view.best.guesses and view.best.speed > needed:
            changed = self._draft(rows, room, view)
            changed = changed._replace(left=min(left, changed.left))
        elif probe := self._probe(rows, view, drafter, idle):
            # What it is to tell is verified, however unsure the drafter is of it.
            changed, self._view = probe, replace(view, picked=False)
        else:
            age = 0 if now.passes else now.age + 1
            changed = Decision(list(rows), none, 0, left, idle, age)
        # One step may be on its way, and each says a token more than it guesses at most.
        said = (changed.left + 2) * (self._config.num_draft_tokens + 1)
        self._standing = changed._replace(near=min(room) < said)

    def _prospect(self, drafter: CostlyDraft, rows: Seq[Row], room: Seq[int]) -> Prospect:
        """What drafting promises."""
        return drafter.prospect(rows, self._ends, picks=self._reads, room=room)

    def _draft(self, rows: Seq[Row], room: Seq[int], view: Prospect) -> Decision:
        """The best step with a draft, or now and then the next best: of two that promise nearly the
        same that one is known by now, and prices and chances of the other are not.
        """
        now, best = self._standing, view.best
        age = now.age + 1 if now.passes else 0
        if view.picked:
            lengths = cap(list(room), self._drafters[self.costly].longest(room))
            return Decision(list(rows), lengths, best.passes, self.PERIOD, 0, age)
        stands = Decision(
            list(rows), (), best.passes, self.PERIOD, 0, age, now.sure + 1, now.trials
        )
        if age and now.sure >= self._config.probe_interval:
            best = self._rival(view, now.trials)
            stands = stands._replace(left=0, sure=0, trials=now.trials + 1)
        lengths = fill([row[: best.passes] for row in view.reaching], best, by_need(rows))
        return stands._replace(lengths=lengths)

    def _rival(self, view: Prospect, trial: int) -> StepBudget:
        """A plain step or, one time in three, the best of other passes, if that promises nearly as
        much."""
        rival = StepBudget(0, 0, float(len(view.reaching)), view.prices.verify[0])
        if trial % 3 == 2 or rival.speed * self.NEAR < view.best.speed:
            rival = best_budget(view.reaching, view.prices, view.best.passes)
        return rival if rival.speed * self.NEAR >= view.best.speed else view.best

    def _probe(
        self, rows: Seq[Row], view: Prospect, drafter: CostlyDraft, idle: int
    ) -> Decision | None:
        """A step that tells of the drafter, if it was left alone for long enough to afford that, or
        has just promised something, or is not known at all."""
        interval = self._config.probe_interval
        again, new = drafter.acceptance.surprise >= self.PROMISING, drafter.new
        on_account = (again or new) and idle > -self.ACCOUNT * interval
        if not (on_account or idle >= interval) or not any(view.reaching):
            return None
        probe, plain = find_probe(rows, view, drafter), view.prices.verify[0]
        due = (probe.lost + drafter.joins.to_read(rows)) / (self.PROBE_SHARE * plain)
        again = again or (new and probe.lost <= FIRST * plain)
        if due > idle and not (on_account and again):
            return None
        return Decision(list(rows), probe.lengths, idle=min(0, int(idle - due)))

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """The best use of what was found and of what the costly drafter would guess."""
        lengths = self._standing.lengths if self.drafts else [0] * len(rows)
        planned = [n if known else 0 for n, known in zip(lengths, covered, strict=True)]
        if not offers:
            settled = Settled([NOBODY] * len(planned), planned, costly=any(planned))
            view = self._view
            weights = view.weights if view and len(view.reaching) == len(rows) else None
            return self._to_pick(settled, covered, [()] * len(planned), weights)
        found = self._lookups.weigh(rows, offers)
        view, passes = self._view, max(planned)
        if view is not None and view.picked:  # it will seldom go as far as it may
            passes = min(passes, view.best.passes)
        computed = self._computed(rows, passes, covered)
        guesses = sum(map(len, found.reaching)) + sum(map(len, computed.reaching))
        width = max(map(len, (*found.reaching, *computed.reaching)))
        most = guesses if self._prices.packs else len(rows) * width
        prices = self._priced(rows, computed, most)
        weights = self._weights(rows, found.reaching, computed.reaching, prices)
        worth = found.weighed(weights), computed.weighed(weights)
        settled = self._lookups.settle(rows, *worth, prices)
        return self._to_pick(settled, covered, found.reaching, weights)

    def _weights(
        self,
        rows: Seq[Row],
        found: Seq[Seq[float]],
        computed: Seq[Seq[float]],
        prices: Prices,
    ) -> Seq[float] | None:
        """What a token of each row is worth, where guesses were found for some."""
        brings = [sum(row) for row in found]
        if computed:
            brings = [max(n, sum(row)) for n, row in zip(brings, computed, strict=True)]
        alone = self._prices.curve(1, 0, keys_of(rows[:1]))[0]
        return self._ends.weights(rows, brings, prices.verify[0], alone)

    def _to_pick(
        self,
        settled: Settled,
        covered: Seq[bool],
        found: Seq[Seq[float]],
        weights: Seq[float] | None,
    ) -> Settled:
        """The same, with all that is to be known when it is known how sure the drafter is; rows
        that it guesses for may then be given as many as any."""
        view, self._settling = self._view, None
        if view is None or not (self.picks and settled.costly):
            return settled
        lengths = settled.lengths
        if view.picked:
            asked = zip(settled.picks, lengths, self._standing.lengths, covered, strict=True)
            lengths = [n if pick != NOBODY else most if own else 0 for pick, n, most, own in asked]
        self._settling = Settling(settled.picks, lengths, found, view, weights)
        return replace(settled, lengths=lengths, reads=True)

    def enough(self, rows: Seq[Row], sure: Seq[Seq[float]]) -> bool:
        """By what the next guess is likely to bring, at the price of time."""
        assert self._settling is not None
        return self._drafters[self.costly].surest.enough(rows, sure, self._settling)

    def pick(self, rows: Seq[Row], sure: Seq[Seq[float]]) -> list[int]:
        """Those that are likeliest to stand, as many as are worth their verification."""
        assert self._settling is not None
        return self._drafters[self.costly].surest.pick(rows, sure, self._settling)

    def _computed(self, rows: Seq[Row], passes: int, covered: Seq[bool]) -> Computed:
        """What the costly drafter would guess for rows that it can guess for."""
        if not passes:
            return Computed([], 0)
        reaching = self._drafters[self.costly].acceptance.reaching(rows, passes)
        room = [most if known else 0 for most, known in zip(room_of(rows), covered, strict=True)]
        return Computed([row[:most] for row, most in zip(reaching, room, strict=True)], passes)

    def _priced(self, rows: Seq[Row], computed: Computed, most: int) -> Prices:
        """Of the steps to settle on; what was looked up is paid for."""
        if computed.passes:
            return self._drafters[self.costly].prices(rows, computed.passes, most)
        return Prices(
            self._prices.curve(len(rows), most, keys_of(rows)), (0.0,), self._prices.packs
        )

    def observe(self, report: StepReport) -> None:
        """Learn from a step: each drafter by the rows that it guessed for."""
        self._prices.observe(report)
        self._ends.observe(report.rows)
        if not report.sources:
            own = self._drafters.get(self.costly)
            ran = {} if own is None else {own: report}
        else:
            self._lookups.observe(report)
            drafted = bool(report.work.length)
            ran = {
                drafter: report.of(name)
                for name, drafter in self._drafters.items()
                if not drafted or name in report.sources
            }
        for drafter, part in ran.items():
            drafter.observe(part)
        self._turns.step(lambda name: self._drafters[name].promise(report.rows, self._ends))
