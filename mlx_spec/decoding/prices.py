"""``Measuring``: what steps of a target and its drafters cost, known before the first of them.

A table is looked for on disk; what it lacks is timed, in the thread that is about to decode, for a
few seconds at most, and kept. So no request is used to find out what a draft length costs. Where
nothing can be drafted and few rows run there is nothing to choose, and nothing is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_spec.control.pass_costs import EDGES, PassCosts
from mlx_spec.control.shared import costs_of, prices_of
from mlx_spec.control.step_prices import DraftPrice, StepPrices
from mlx_spec.decoding.drafters.base import Drafter, Trial
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.model.cost_files import (
    costs_folder,
    keep_costs,
    kept_costs,
    measuring,
    model_lines,
)
from mlx_spec.model.pass_timing import COARSE, PassTimer, order_of
from mlx_spec.model.ranks import LONE, Ranks
from mlx_spec.model.runner import ModelRunner

# Seconds: for a model of which nothing is known, for what is lacking, for second looks.
FIRST, MORE, AGAIN = 2.0, 0.6, 0.3
LOOKS = 3  # processes that look at a table
DRAFT_SHARE, PLAIN_SHARE = 0.3, 0.4  # of these: for a drafter, and where nothing is drafted
FEW = 4  # tokens of a step that drafts nothing, up to which no other width is looked for
WIDTHS = (1, 2, 4, 7)  # tokens a row that are timed where a model folds tokens into states


@dataclass(frozen=True)
class Wanted:
    """What is to be timed now.

    Attributes:
        fewest, most: tokens of a pass.
        rows: that wait, of one token each in their shortest passes.
        width: of each, in their widest.
        share: of the usual time.
        stopping: whether nobody waits any more.
    """

    fewest: int
    most: int
    rows: int
    width: int
    share: float
    stopping: Callable[[], bool]


@dataclass(frozen=True)
class TimedPart:
    """Something whose passes are timed.

    Attributes:
        name: in words.
        costs: what is known of it.
        trial: how it is run.
        widths: tokens a row of its passes.
        ranks: that run it, by rank 0's clock; what is kept is rank 0's.
    """

    name: str
    costs: PassCosts
    trial: Trial
    widths: tuple[int, ...] = (1,)
    ranks: Ranks = LONE

    def time(self, wanted: Wanted) -> int:
        """Time what is not known of it, here or on disk; how many kinds of passes these were."""
        lines = model_lines(*self.trial.models, part=self.trial.part + self.ranks.words)
        clock = self.ranks.clock(time.perf_counter)
        fetched = not self.costs.known and self._fetch(lines)
        seconds = (MORE if self._much else FIRST) * wanted.share
        timer = PassTimer(clock() + seconds, wanted.stopping, clock)
        timed = sum(self._time(width, wanted, timer) for width in self.widths)
        if not timed and fetched and self.costs.looks < LOOKS:
            # Another process may have been disturbed: a short look at what matters now.
            timer.until = clock() + AGAIN * wanted.share
            for width in self.widths:
                self._time(width, wanted, timer, again=True)
        elif not timed:
            return 0
        self.costs.looks += fetched or not self.costs.looks
        share = self.ranks.share(self.trial.key_share)
        self.costs.put({}, key=share * self.costs.usual(1))
        if self.ranks.rank == 0:
            keep_costs(lines, self.costs)
        return timed

    def _time(self, width: int, wanted: Wanted, timer: PassTimer, *, again: bool = False) -> int:
        """Time passes of so many tokens a row, or some of them again; how many are new."""
        known = self.costs.points.get(width, {})
        # Their own number is a point too; steps say it of numbers that come later.
        counts = sorted(EDGES if self._much else {*EDGES, wanted.rows})
        edges = [count * width for count in counts if count * width >= wanted.fewest]
        present = (wanted.rows, wanted.rows * wanted.width + 1)
        order = order_of(edges, known, wanted.most, present, sparing=self._much)
        # Some that are known tell how fast the machine is now, beside when those were timed.
        near = sorted(known, key=lambda tokens: (abs(tokens - present[0]), tokens))
        if again:
            order = [tokens for tokens in near if tokens <= present[1]]
        if not order:
            return 0
        points = timer.time(
            partial(self.trial.describe, width=width), [*dict.fromkeys([*near[:2], *order])]
        )
        self.costs.put(points, width=width)
        return len(points.keys() - known)

    @property
    def _much(self) -> bool:
        """Whether so much is known that only what is needed now is worth a pause."""
        return len(self.costs.points[1]) > len(COARSE)

    def _fetch(self, lines: tuple[str, ...]) -> bool:
        """Take over what another process has timed; whether there was anything."""
        kept = kept_costs(lines) if self.ranks.rank == 0 else None
        if self.ranks.several:
            record = self.ranks.share(None if kept is None else kept.to_dict())
            kept = None if record is None else PassCosts.from_dict(record)
        if kept is None:
            return False
        for width, points in kept.points.items():
            self.costs.put(points, width=width, key=kept.key, fresh=False)
        self.costs.looks = kept.looks
        return True


class Measuring:
    """Times what one decoder runs, once.

    Args:
        runner: the target.
        drafter: what drafts for it.
        owners: the models, of whose pair prices are shared.
        most: longest draft.
        adaptive: whether its length is chosen by what it costs.

    Attributes:
        prices: what is known; what is timed later is in it too.
        told: what was done, in words; empty where nothing was timed here.
    """

    def __init__(
        self,
        runner: ModelRunner,
        drafter: Drafter,
        owners: tuple[Any, Any],
        most: int,
        *,
        adaptive: bool,
    ) -> None:
        self._most, self._adaptive = most, adaptive and most > 0
        ranks = runner.ranks
        self._done, self.told = not ranks.share(measuring()), ""
        self._seen = FEW  # tokens of steps, where nothing is chosen, that are seen to
        widths = WIDTHS if runner.pool.folds else (1,)
        self._target = TimedPart("target", costs_of(runner.model), _trial_of(runner), widths, ranks)
        members = drafter.members if isinstance(drafter, ChainDrafter) else (drafter,)
        trials = {each.name: each.trial() for each in members}
        self._drafts = [
            TimedPart(name, _costs_of(trial, ranks), trial, ranks=ranks)
            for name, trial in trials.items()
            if trial is not None
        ]
        costs, parts = self._target.costs, self._drafts

        # Where nothing is chosen nobody asks whether the model packs, which takes a look at it.
        chosen = self._adaptive
        packs = chosen and runner.packs

        def make() -> StepPrices:
            drafts = {one.name: DraftPrice(one.costs, one.trial.first) for one in parts}
            return StepPrices(costs, drafts, packs=packs)

        self._packs: Callable[[], bool] = lambda: runner.packs
        own = StepPrices(costs, packs=self._packs)
        self.prices = prices_of(*owners, drafter.name, make) if chosen else own

    def before_step(self, rows: int, limit: int, stopping: Callable[[], bool]) -> None:
        """Time what is not known, where the step to come could be another for it.

        Args:
            rows: that are about to decode.
            limit: most rows.
            stopping: whether nobody waits for them any more.
        """
        width = self._most + 1
        if self._done or not rows:
            return
        if not self._adaptive and (rows * width <= self._seen or not self._packs()):
            return
        began = time.perf_counter()
        if self._adaptive:
            wanted = Wanted(1, limit * width, rows, width, 1.0, stopping)
        else:
            wanted = Wanted(rows * width, 2 * rows * width, rows, width, PLAIN_SHARE, stopping)
        timed = self._time(self._target, wanted)
        for part in self._drafts if self._adaptive else ():
            of_draft = Wanted(1, limit * part.trial.first, rows, 2, DRAFT_SHARE, stopping)
            timed += self._time(part, of_draft)
        self._done, self._seen = self._adaptive, 2 * rows * width
        if timed:
            seconds = time.perf_counter() - began
            kept = f"{timed} kinds of passes timed in {seconds:.1f} s, kept in {costs_folder()}"
            self.told = "; ".join(filter(None, (kept, self.told)))

    def _time(self, part: TimedPart, wanted: Wanted) -> int:
        """Time one of them; what its code raises costs speed only."""
        try:
            return part.time(wanted)
        except Exception as error:  # whatever a model raises without caches
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            self.told = f"those of {part.name} could not be timed ({reason})"
            return 0


def _costs_of(trial: Trial, ranks: Ranks) -> PassCosts:
    """What is known of it, whoever runs it: one process, or several alike."""
    model, *others = trial.models
    return costs_of(model, others[0] if others else None, trial.part + ranks.words)


def _trial_of(runner: ModelRunner) -> Trial:
    """How to time passes of a model."""
    return Trial(runner.trial, (runner.model,), key_share=runner.key_share)
