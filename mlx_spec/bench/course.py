"""A run of the benchmark: models loaded, a first look, then all arms in turn, round after round.

Rounds are outermost: whenever it is interrupted, what is known is known of the whole grid, and
whatever drifts meanwhile drifts for all.
"""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import mlx.core as mx

from mlx_spec import interrupts
from mlx_spec.bench.arms import AGAIN, ArmRun, Runner, weight_bytes
from mlx_spec.bench.at_hand import drafts_at_hand
from mlx_spec.bench.bandwidth import Bandwidth, measure_bandwidth
from mlx_spec.bench.conclusions import CellRuns, cell_result, recommended
from mlx_spec.bench.contest import Contest, open_contest, usual_length
from mlx_spec.bench.options import BenchOptions
from mlx_spec.bench.plan import (
    WARM_TOKENS,
    FirstLook,
    Plan,
    first_plan,
    make_plan,
    within_context,
)
from mlx_spec.bench.results import BenchResult, CellKey, CellResult
from mlx_spec.errors import MlxSpecError
from mlx_spec.pipeline.backend import Models
from mlx_spec.pipeline.flags import Flags


class BenchWatch(Protocol):
    """Hears how far it is."""

    def loading(self, text: str) -> AbstractContextManager[None]:
        """Something is loaded or looked at for as long as the block takes."""

    def tell(self, text: str) -> None:
        """Something to know."""

    def planned(self, plan: Plan, seconds: float, cut: bool) -> None:
        """What will be run, about how long all of it takes, and whether that was cut to fit."""

    def ran(self, what: str, seconds: float) -> None:
        """A run has ended; so many of those seconds were foreseen for it."""


class BenchCourse:
    """One ``mlx-spec bench``.

    Args:
        options: what is measured.
        flags: the model, and what all arms have in common.
        watch: hears how far it is.
    """

    def __init__(self, options: BenchOptions, flags: Flags, watch: BenchWatch) -> None:
        self.options, self.flags, self.watch = options, flags, watch
        self._plan: Plan | None = None
        self._pace = FirstLook({1: 0.0}, 0.0)
        self._bandwidth = Bandwidth(0.0, 0.0)
        self._sizes: dict[str | None, int] = {}
        self._contests: list[Contest] = []
        self._cells: list[CellResult] = []
        self._left_out: dict[str, str] = {}

    def run(self) -> BenchResult:
        """All of it; Ctrl-C ends it with what is known.

        Raises:
            InvalidRequest, ModelLoadError, UnsupportedModel, TokenizerMismatch: as
                ``open_contest``.
            KeyboardInterrupt: nothing was known yet.
        """
        with self.watch.loading("timing the memory"):
            self._bandwidth = measure_bandwidth()
        interrupted = False
        for weights in self.options.weights:
            cells: list[CellRuns] = []
            try:
                contest = self._open(weights, cells)
                self._rounds(contest, cells)
            except KeyboardInterrupt:
                interrupts.answered()
                interrupted = True
            except MlxSpecError as error:
                if not self._cells:
                    raise
                self._leave_out(f"quantized: {weights}", error)  # what is known stays known
            for cell in cells:
                if cell.runs:
                    self._cells.append(cell_result(cell, self._contests[-1], self._bandwidth))
            if interrupted:
                break
            self._contests[-1].close()
        if not self._cells:
            raise KeyboardInterrupt
        return self._result(interrupted)

    def _leave_out(self, what: str, error: MlxSpecError) -> None:
        self._left_out[what] = " ".join(str(error).split())
        self.watch.tell(f"{what} is left out: {self._left_out[what]}")

    def _open(self, weights: str | None, cells: list[CellRuns]) -> Contest:
        """Models loaded, the plan made, its cells with their prompts, everything run once."""
        models = Models(self.watch.loading, self.watch.tell)
        contest = open_contest(self.options, self.flags, weights, models)
        self._contests.append(contest)
        self._sizes[weights] = weight_bytes(contest.target[0])
        if self._plan is None and not contest.has_draft_model:
            self._hint(contest)
        with self.watch.loading("a first look at its speed"):
            first, _ = first_plan(self.options, built_in=self.options.prompts is None)
            shortest = min(first.lengths, key=lambda length: length or 0)
            usual = self._look(contest, first.batches, shortest)
        if self._plan is None:
            self._plan = self._made(contest, usual)
        for batch, length in self._plan.cells:
            prompts, kinds = contest.encoded(self._plan.count(batch), length)
            cells.append(CellRuns(CellKey(contest.weights, batch, length), prompts, kinds))
        seconds = self._plan.seconds(self._pace, contest.arms_at, usual)
        self.watch.planned(self._plan, seconds, self._plan != first)
        for batch in self._plan.batches:
            each = self._plan.warm_seconds(self._pace, batch, usual)
            for runner in [one for one in contest.runners if one.runs_at(batch)]:
                if runner.name == AGAIN:
                    continue  # the same as plain decoding
                contest.try_out(runner, batch, shortest, WARM_TOKENS)
                self.watch.ran(f"{runner.name}, {batch} at a time, uncounted", each)
        for name, reason in contest.left_out.items():
            self.watch.tell(f"{name} is left out: {reason}")
        return contest

    def _made(self, contest: Contest, usual: int) -> Plan:
        """What is measured, of each form of the weights."""
        share = replace(self.options, minutes=self.options.minutes / len(self.options.weights))
        plan = make_plan(
            share, self._pace, contest.arms_at, usual, built_in=self.options.prompts is None
        )
        if self.options.lengths:
            return plan
        fitting = within_context(plan, contest.context)
        if missing := [str(n) for n in plan.lengths if n not in fitting.lengths]:
            room = f"the model's context is {contest.context:,}"
            self.watch.tell(f"prompts of {', '.join(missing)} tokens are left out: {room}")
        return fitting

    def _hint(self, contest: Contest) -> None:
        """Tell of drafts that could be tried, too."""
        with self.watch.loading("looking for draft models"):
            names = drafts_at_hand(contest.target[0])
        if names:
            more = " or ".join(f"--draft-model {shlex.quote(name)}" for name in names)
            self.watch.tell(f"smaller models of its kind are here; to try one, too: {more}")

    def _look(self, contest: Contest, batches: tuple[int, ...], length: int | None) -> int:
        """Plain decoding with few and with many rows; returns the mean length of a prompt."""
        prompts, _ = contest.encoded(max(batches), length)
        plain = contest.runners[0]
        steps = {}
        plain.run(prompts[: batches[0]], batches[0], 2)  # what the first run alone takes
        for batch in dict.fromkeys((batches[0], batches[-1])):
            figures = plain.run(prompts[:batch], batch, WARM_TOKENS).figures
            steps[batch] = figures["step seconds"]
            reading = 1 / max(1e-9, figures["prompt tok/s"])
        self._pace = FirstLook(steps, reading)
        return usual_length(prompts)

    def _rounds(self, contest: Contest, cells: list[CellRuns]) -> None:
        """Every arm of every cell, once a round, another arm first each time."""
        plan = self._plan
        assert plan is not None
        for turn in range(plan.rounds):
            for cell in cells:
                batch = cell.key.batch
                runners = [one for one in contest.runners if one.runs_at(batch)]
                first = turn % len(runners)
                made = {}
                for runner in runners[first:] + runners[:first]:
                    made[runner.name] = self._run(runner, cell, plan)
                cell.add({runner.name: made[runner.name] for runner in runners})

    def _run(self, runner: Runner, cell: CellRuns, plan: Plan) -> ArmRun:
        """One run that counts."""
        batch, usual = cell.key.batch, usual_length(cell.prompts)
        mx.clear_cache()
        run = runner.run(cell.prompts, batch, plan.tokens)
        seconds = plan.run_seconds(self._pace, batch, usual)
        self.watch.ran(f"{runner.name}, {batch} at a time", seconds)
        return run

    def _result(self, interrupted: bool) -> BenchResult:
        assert self._plan is not None
        result = BenchResult(
            self.flags.target,
            self._sizes,
            self._bandwidth,
            self._plan,
            tuple(self._cells),
            {name: why for one in self._contests for name, why in one.left_out.items()}
            | self._left_out,
            interrupted=interrupted,
        )
        told = recommended(result.cells, self._contests, result.noise)
        return replace(result, recommended=tuple(told))
