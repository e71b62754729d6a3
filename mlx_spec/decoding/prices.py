"""``Measuring``: what steps of a target and its drafters cost, known before the first of them.

A table is looked for on disk; where it says nothing of so many rows, passes are timed in the thread
that is about to decode, for a few seconds at most, and kept: once for a machine, as a generator is
made or a first step taken. So no request is used to find out what a draft length costs. What is
known too coarsely is timed in what decoding earns for it (``control.allowance``), a hundredth of
its time. Where nothing can be drafted and few rows run there is nothing to choose, and nothing is
timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.report import StepReport
from mlx_spec.control.shared import allowance_of, costs_of, prices_of
from mlx_spec.control.step_prices import DraftPrice, StepPrices
from mlx_spec.decoding.drafters.base import Drafter, Trial
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.decoding.timed_part import TimedPart, Wanted
from mlx_spec.model.cost_files import costs_folder, measuring
from mlx_spec.model.ranks import Ranks
from mlx_spec.model.runner import ModelRunner

CLOSER = 0.3  # seconds to be earned for a closer look
DRAFT_SHARE, PLAIN_SHARE = 0.3, 0.4  # of usual times: for a drafter, and where nothing is drafted
FEW = 4  # tokens of a step that drafts nothing, up to which no other width is looked for
WIDTHS = (1, 2, 4, 7)  # tokens a row that are timed where a model folds tokens into states


class Measuring:
    """Times what one decoder runs.

    Args:
        runner: the target.
        drafter: what drafts for it.
        owners: the models, of whose pair prices are shared.
        most: longest draft.
        adaptive: whether its length is chosen by what it costs.

    Attributes:
        prices: what is known; what is timed later is in it too.
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
        self._off = not ranks.share(measuring())
        # What decoders earn differs between ranks, which must do alike.
        self._allowance = None if ranks.several else allowance_of(runner.model)
        self._timed, self._seconds, self._failed = 0, 0.0, ""
        self._seen = 0 if self._adaptive else FEW  # tokens of steps that are seen to
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

    @property
    def told(self) -> str:
        """What was done, in words; empty where nothing was timed here."""
        kept = f"{self._timed} kinds of passes timed in {self._seconds:.1f} s"
        return "; ".join(
            filter(None, (f"{kept}, kept in {costs_folder()}" * bool(self._timed), self._failed))
        )

    def before_any(self, limit: int, stopping: Callable[[], bool]) -> None:
        """Know what steps cost before anybody asks for one, where that will be needed.

        Args:
            limit: most rows.
            stopping: whether nobody will.
        """
        if self._adaptive and self._allowance is not None:
            self.before_step(1, limit, stopping)

    def before_step(self, rows: int, limit: int, stopping: Callable[[], bool]) -> None:
        """Time what is not known, where the step to come could be another for it.

        Args:
            rows: that are about to decode.
            limit: most rows.
            stopping: whether nobody waits for them any more.
        """
        if self._off or not rows:
            return
        tokens = rows * (self._most + 1)
        if tokens > self._seen:
            if self._adaptive or self._packs():
                self._time(rows, limit, stopping, lambda part, wanted: part.see_to(wanted))
                self._seen = 2 * tokens
        elif self._allowance is not None:
            earned = self._allowance.earn(time.perf_counter())
            if earned >= CLOSER:
                self._look_closer(rows, limit, stopping, earned)

    def hear(self, report: StepReport) -> None:
        """Correct what passes are padded by where no policy does: lengths are fixed, or given."""
        if not self._adaptive and self.prices.known:
            self.prices.observe(report)

    def _look_closer(
        self, rows: int, limit: int, stopping: Callable[[], bool], earned: float
    ) -> None:
        assert self._allowance is not None
        timed, before = self._timed, self._seconds
        self._time(rows, limit, stopping, lambda part, wanted: part.look_closer(wanted, earned))
        # A look that found nothing to do is not taken again soon.
        spent = max(self._seconds - before, 0.0 if self._timed > timed else earned)
        self._allowance.spend(spent, time.perf_counter())

    def _time(
        self,
        rows: int,
        limit: int,
        stopping: Callable[[], bool],
        do: Callable[[TimedPart, Wanted], int],
    ) -> None:
        """Have all parts timed; what their code raises costs speed only."""
        width, began = self._most + 1, time.perf_counter()
        if self._adaptive:
            needed = rows * min(2, width)
            wanted = [(self._target, Wanted(1, limit * width, needed, rows, width, 1.0, stopping))]
            for part in self._drafts:
                most = limit * part.trial.first
                wanted.append((part, Wanted(1, most, rows, rows, 2, DRAFT_SHARE, stopping)))
        else:
            least = rows * width
            wanted = [
                (
                    self._target,
                    Wanted(least, 2 * least, least, rows, width, PLAIN_SHARE, stopping),
                )
            ]
        timed = 0
        for part, what in wanted:
            try:
                timed += do(part, what)
            except Exception as error:  # whatever a model raises without caches
                reason = " ".join(str(error).split())[:100] or type(error).__name__
                self._failed = f"those of {part.name} could not be timed ({reason})"
        self._timed += timed
        self._seconds += time.perf_counter() - began


def _costs_of(trial: Trial, ranks: Ranks) -> PassCosts:
    """What is known of it, whoever runs it: one process, or several alike."""
    model, *others = trial.models
    return costs_of(model, others[0] if others else None, trial.part + ranks.words)


def _trial_of(runner: ModelRunner) -> Trial:
    """How to time passes of a model."""
    return Trial(runner.trial, (runner.model,), key_share=runner.key_share)
