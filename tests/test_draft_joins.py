"""Rows that leave and join: a batch that empties, and newcomers whose texts the drafter reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.joins import JoinCost, ReadingCost
from mlx_spec.control.report import StepReport
from tests.hardware import (
    DEAR_DRAFT,
    FIRST_STEPS,
    LINEAR,
    MEMORY_BOUND,
    MOST,
    ROOFLINE,
    STAIRCASE,
    Hardware,
    Simulation,
    adaptive,
    make_rows,
    named,
)


def total(policy: Any, hardware: Hardware, chances: list[float], **options: Any) -> float:
    """Goodput over all, rows that end included."""
    simulation = Simulation(policy, hardware, list(chances), noise=0.05, seed=11, **options)
    return simulation.steps(FIRST_STEPS).goodput()


def best_fixed(hardware: Hardware, chances: list[float], **options: Any) -> tuple[float, float]:
    """Goodput of the best fixed length of 0..6, and that of plain decoding."""
    goodputs = [
        total(FixedDraftLength(length), hardware, chances, **options) for length in range(MOST + 1)
    ]
    return max(goodputs), goodputs[0]


@pytest.mark.parametrize("chance", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("hardware", [MEMORY_BOUND, STAIRCASE, ROOFLINE, LINEAR], ids=named)
def test_a_batch_that_empties_stays_near_the_best(hardware: Hardware, chance: float) -> None:
    """Stops costs of a full batch that are used for the last row, where drafts pay far more."""
    ends: Callable[[random.Random], int] = lambda rng: rng.randint(20, 400)  # noqa: E731
    options: dict[str, Any] = {"new_tokens": ends, "replace": False}
    best, plain = best_fixed(hardware, [chance] * 12, **options)
    goodput = total(adaptive(), hardware, [chance] * 12, **options)
    assert goodput > 0.9 * best
    assert goodput > 0.95 * plain


@pytest.mark.parametrize("chance", [0.0, 0.8])
@pytest.mark.parametrize(
    "hardware", [MEMORY_BOUND, STAIRCASE, LINEAR, DEAR_DRAFT], ids=lambda hardware: hardware.name
)
@pytest.mark.parametrize(("count", "dropping"), [(16, True), (32, True), (32, False)])
def test_short_texts_in_a_full_batch_are_never_much_slower(
    count: int, dropping: bool, hardware: Hardware, chance: float
) -> None:
    """Stops a policy that cannot learn when a row ends in nearly every step: what was planned is
    dropped with the step built ahead, or rows are computed past their end; few steps are clean
    where reading is not measured apart, and newcomers cost the drafter a pass.
    """
    options: dict[str, Any] = {
        "new_tokens": lambda rng: rng.randint(8, 24),
        "dropping": dropping,
        "apart": not dropping,
    }
    best, plain = best_fixed(hardware, [chance] * count, **options)
    goodput = total(adaptive(), hardware, [chance] * count, **options)
    assert goodput > 0.9 * best
    assert goodput > 0.95 * plain


def test_long_prompts_of_short_texts_are_priced_as_measured() -> None:
    """Stops what the drafter's reading took, measured apart, from being left out; guessed from
    slow steps it gives 0.92 here.
    """
    options: dict[str, Any] = {
        "new_tokens": lambda rng: rng.randint(8, 24),
        "catch_up": 12.0,
        "apart": True,
    }
    best, _ = best_fixed(DEAR_DRAFT, [0.0] * 32, **options)
    assert total(adaptive(), DEAR_DRAFT, [0.0] * 32, **options) > 0.95 * best


def test_reading_counts_for_those_who_were_read() -> None:
    """Stops seconds that are lost when a text is read over several steps, plain ones between
    them, or that are counted twice, by the clock and by a guess.
    """
    reading = ReadingCost()
    joins = JoinCost(reading)
    batch = make_rows(99, 99, 99)

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
        reading, batch = ReadingCost(), make_rows(99)
        JoinCost(reading).observe(StepReport(batch, [2], [0], seconds, False), 0.5)
        assert reading.seconds == pytest.approx(expected)
