"""Rows that leave and join: a batch that empties, and newcomers whose texts the drafter reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.joins import JoinCost, ReadingCost
from mlx_spec.control.report import StepReport
from scripts.simulated.knowing import Clairvoyant
from scripts.simulated.machines import COMPUTE, CPU, DEAR_DRAFT, FLAT, LINEAR, TILES_32, Machine
from scripts.simulated.play import Conditions, Simulation
from scripts.simulated.texts import Workload, even, mixed
from tests.policies import MOST, adaptive, long_rows
from tests.test_draft_length import named

STEPS = 300
HARD = Conditions(seed=11, catch_up=3.0)


def total(policy: Any, machine: Machine, work: Workload, conditions: Conditions = HARD) -> float:
    """Goodput over all, rows that end included."""
    return Simulation(policy, machine, work, conditions).steps(STEPS).goodput()


def best_fixed(
    machine: Machine, work: Workload, conditions: Conditions = HARD
) -> tuple[float, float]:
    """Goodput of the best fixed length of 0..6, and that of plain decoding."""
    goodputs = [
        total(FixedDraftLength(length), machine, work, conditions) for length in range(MOST + 1)
    ]
    return max(goodputs), goodputs[0]


@pytest.mark.parametrize("chance", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("machine", [FLAT, TILES_32, COMPUTE, LINEAR], ids=named)
def test_a_batch_that_empties_stays_near_the_best(machine: Machine, chance: float) -> None:
    """Stops lengths of a full batch that are used for the last row, where drafts pay far more."""
    ends: Callable[[random.Random], int] = lambda rng: rng.randint(20, 200)  # noqa: E731
    work = Workload(12, lambda rng: even(chance), tokens=ends, replace=False)
    best = plain = goodput = 0.0
    for seed in (11, 12, 13):  # one batch has much luck
        hard = Conditions(seed=seed, catch_up=3.0)
        fixed = best_fixed(machine, work, hard)
        best, plain = best + fixed[0], plain + fixed[1]
        goodput += total(adaptive(machine), machine, work, hard)
    assert goodput > 0.9 * best
    assert goodput > 0.97 * plain


def seconds_to_finish(policy: Any, machine: Machine, work: Workload, seed: int) -> float:
    return sum(Simulation(policy, machine, work, Conditions(seed=seed)).steps(10**4).seconds)


@pytest.mark.parametrize("machine", [FLAT, TILES_32, CPU], ids=named)
def test_a_closed_batch_of_easy_and_hard_texts_is_finished_in_time(machine: Machine) -> None:
    """Stops a policy that hurries those who are quick anyway: what counts is when all is done."""
    work = Workload(6, mixed, tokens=lambda rng: rng.randint(30, 120), replace=False)
    mine = known = 0.0
    fixed = [0.0] * (MOST + 1)
    for seed in range(6):
        mine += seconds_to_finish(adaptive(machine), machine, work, seed)
        known += seconds_to_finish(Clairvoyant(machine, MOST), machine, work, seed)
        for length in range(MOST + 1):
            fixed[length] += seconds_to_finish(FixedDraftLength(length), machine, work, seed)
    assert mine < 1.05 * known
    assert mine < 1.08 * min(fixed)  # the best, tried beforehand


@pytest.mark.parametrize("chance", [0.0, 0.8])
@pytest.mark.parametrize("machine", [FLAT, TILES_32, LINEAR, DEAR_DRAFT], ids=named)
@pytest.mark.parametrize(("count", "dropping"), [(16, True), (32, False)])
def test_short_texts_in_a_full_batch_are_never_much_slower(
    count: int, dropping: bool, machine: Machine, chance: float
) -> None:
    """Stops a policy that cannot learn when a row ends in nearly every step: what was planned is
    dropped with the step built ahead, or rows are computed past their end; few steps are clean
    where reading is not measured apart, and newcomers cost the drafter a pass.
    """
    hard = Conditions(seed=11, catch_up=3.0, dropping=dropping, apart=not dropping)
    work = Workload(count, lambda rng: even(chance), tokens=lambda rng: rng.randint(8, 24))
    best, plain = best_fixed(machine, work, hard)
    goodput = total(adaptive(machine), machine, work, hard)
    assert goodput > 0.92 * best
    assert goodput > 0.96 * plain


def test_long_prompts_of_short_texts_are_priced_as_measured() -> None:
    """Stops what the drafter's reading took, measured apart, from being left out."""
    hard = Conditions(seed=11, catch_up=12.0)
    work = Workload(32, lambda rng: even(0.0), tokens=lambda rng: rng.randint(8, 24))
    best, _ = best_fixed(DEAR_DRAFT, work, hard)
    assert total(adaptive(DEAR_DRAFT), DEAR_DRAFT, work, hard) > 0.95 * best


def test_reading_counts_for_those_who_were_read() -> None:
    """Stops seconds that are lost when a text is read over several steps, plain ones between
    them, or that are counted twice, by the clock and by a guess.
    """
    reading = ReadingCost()
    joins = JoinCost(reading)
    batch = long_rows(3)

    def observe(lengths: list[int], read: float, *, clean: bool = True) -> None:
        report = StepReport(batch, lengths, [0] * 3, 1.0, clean, reading=read)
        joins.observe(report, 0.5)

    observe([0, 0, 0], 0.0)
    assert joins.to_read(batch) == 0.0
    observe([2, 0, 0], 3.0)  # the others' texts are long
    assert reading.seconds == 3.0
    assert joins.to_read(batch) == 2 * 3.0
    observe([2, 0, 0], 4.0, clean=False)
    observe([0, 0, 0], 0.0)
    observe([2, 2, 2], 2.0, clean=False)
    assert reading.seconds == pytest.approx(3.0 + ReadingCost.NEWEST * ((4 + 2) / 2 - 3.0))
    assert joins.to_read(batch) == 0.0


def test_where_reading_is_not_measured_slow_steps_stand_for_it() -> None:
    """Stops newcomers from being free where a step and its reading are timed as one, and one
    hiccup from making them unaffordable.
    """
    for seconds, expected in ((1.5, 1.0), (1000.0, JoinCost.MOST * 0.5)):
        reading, batch = ReadingCost(), long_rows(1)
        JoinCost(reading).observe(StepReport(batch, [2], [0], seconds, False), 0.5)
        assert reading.seconds == pytest.approx(expected)
