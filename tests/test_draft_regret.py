"""What a policy says less than one who knows: by setting, of several runs together.

``scripts.simulated.regret`` says how it is counted. Runs are fewer and shorter here than in the
report of ``scripts/simulate.py``, and settings are the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec.control import shifts, surest
from mlx_spec.control.adaptive import AdaptiveDrafts
from scripts.simulated.machines import COMPUTE, CPU, FLAT, LINEAR, SHAPES, TILES_5, Machine
from scripts.simulated.regret import (
    SHIFTS,
    TEXTS,
    Effort,
    batch,
    picked,
    shifted,
    steady,
    visited,
)
from tests.policies import adaptive
from tests.test_draft_length import named

STATIONARY, SHIFTED = 0.03, 0.08  # most regret
STILL, MOVED = (
    {1: Effort(6), 4: Effort(5), 16: Effort(1)},
    {1: Effort(4), 4: Effort(2), 16: Effort(1)},
)
WIDE = {64: Effort(3), 256: Effort(1)}


def reading(machine: Machine) -> Any:
    """A policy that may ask how sure the drafter is."""
    return adaptive(machine, reads=True)


@pytest.mark.parametrize("machine", SHAPES, ids=named)
def test_regret_of_steady_texts_is_small(machine: Machine) -> None:
    """Stops a policy that is slower than no speculation, stuck at a poor length, or long in
    learning: within 30 steps it is there. Batch sizes on both sides of where drafts pay.
    """
    for rows, effort in STILL.items():
        for chances in TEXTS:
            lost = steady(adaptive, machine, batch(rows, chances), effort)
            assert lost.all < STATIONARY, (rows, chances)
            assert lost.later < STATIONARY, (rows, chances)


@pytest.mark.parametrize("machine", SHAPES, ids=named)
def test_regret_after_a_shift_is_bounded(machine: Machine) -> None:
    """Stops a policy that lives on its past: texts turn hard to guess, or easy."""
    for rows, effort in MOVED.items():
        for texts in SHIFTS:
            assert shifted(adaptive, machine, rows, texts, effort).all < SHIFTED, (rows, texts)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [TILES_5, COMPUTE, CPU], ids=named)
def test_regret_of_wide_batches(machine: Machine) -> None:
    """The same bounds, of 64 and 256 rows; the report has all machines."""
    for rows, effort in WIDE.items():
        for chances in TEXTS:
            lost = steady(adaptive, machine, batch(rows, chances), effort)
            assert lost.all < STATIONARY, (rows, chances)
            assert lost.later < STATIONARY, (rows, chances)
        texts = SHIFTS[0]
        assert shifted(adaptive, machine, rows, texts, Effort(1)).all < SHIFTED, (rows, texts)


@pytest.mark.parametrize("machine", [LINEAR, FLAT], ids=named)
def test_regret_of_64_rows(machine: Machine) -> None:
    """Where drafts do not pay, and where any do."""
    for chances in (TEXTS[0], TEXTS[3], TEXTS[4]):
        lost = steady(adaptive, machine, batch(64, chances), Effort(1, 200))
        assert max(lost.all, lost.later) < STATIONARY, chances
    assert shifted(adaptive, machine, 64, SHIFTS[0], Effort(1, 200, 60)).all < SHIFTED


@pytest.mark.parametrize("rows", [64, 256])
def test_a_wide_batch_soon_knows_a_drafter_that_nobody_knew(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops one guess at a time, in a batch that parks by what is usual of drafters, and guesses
    further on that are forgotten while the first ones are tested."""
    work = batch(rows, (0.95,))
    assert steady(adaptive, TILES_5, work, Effort(1, 60)).all < STATIONARY
    monkeypatch.setattr(AdaptiveDrafts, "ACCOUNT", -1)
    assert steady(adaptive, TILES_5, work, Effort(1, 60)).all > STATIONARY or rows > 64


@pytest.mark.parametrize("machine", SHAPES, ids=named)
def test_texts_that_come_and_go_are_like_shifts(machine: Machine) -> None:
    """Each newcomer is another text, of which the others say little: easy and hard requests."""
    for rows, effort in {4: Effort(3), 16: Effort(2, 200)}.items():
        assert visited(adaptive, machine, rows, effort).all < SHIFTED, rows


def test_texts_that_turn_hard_are_noticed_within_30_steps() -> None:
    """Stops averages that are right in the end: of one row that is long."""
    for machine in (TILES_5, CPU):
        lost = shifted(adaptive, machine, 1, ((0.9,), (0.2,)), Effort(6))
        assert lost.later < STATIONARY, machine.name


def test_it_is_the_test_for_shifts_that_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops one that is there and says nothing: what follows a shift is then lost to averages."""
    texts = (0.9,), (0.2,)
    noticed = shifted(adaptive, CPU, 1, texts, Effort(6))
    monkeypatch.setattr(shifts, "BOUND", 1e9)
    unnoticed = shifted(adaptive, CPU, 1, texts, Effort(6))
    assert unnoticed.all > SHIFTED > 1.5 * noticed.all
    assert unnoticed.later > STATIONARY > noticed.later


# --- a drafter that says how sure it is ---------------------------------------------------

# Settings in which most was lost; the report has all of them.
HEARD = [
    (LINEAR, 1, "two kinds"),
    (LINEAR, 1, "half and half"),
    (LINEAR, 16, "two kinds"),
    (CPU, 1, "two kinds"),
    (FLAT, 1, "mostly sure"),
    (TILES_5, 4, "half and half"),
    (TILES_5, 4, "seldom sure"),
    (TILES_5, 16, "mostly sure"),
    (COMPUTE, 4, "all alike"),
    (COMPUTE, 64, "two kinds"),
]
RUNS = {1: Effort(6), 4: Effort(2), 16: Effort(1), 64: Effort(1, 60)}


@pytest.mark.parametrize(
    ("machine", "rows", "tokens"), HEARD, ids=[f"{m.name}, {r}, {t}" for m, r, t in HEARD]
)
def test_picking_is_near_one_who_knows_what_is_said(
    machine: Machine, rows: int, tokens: str
) -> None:
    """Stops picks that follow the drafter's word further than it is worth, or not far enough: over
    texts whose tokens are easy and hard in different ways.
    """
    lost = picked(reading, machine, rows, tokens, RUNS[rows])
    assert lost.all < STATIONARY
    assert lost.later < STATIONARY


def test_ears_that_are_not_used_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """By averages, and by a plan that gives one row a whole guess in each step or none: where a
    token is dear, it would be parked for ever."""
    for machine, rows, tokens in ((TILES_5, 4, "half and half"), (LINEAR, 1, "two kinds")):
        assert picked(adaptive, machine, rows, tokens, RUNS[rows]).all > 1.5 * STATIONARY
    whole = surest.StepBudget(1, 0, 1.0, 1e9)
    monkeypatch.setattr(surest, "replay", lambda usual, rows, prices: whole)
    assert picked(reading, LINEAR, 1, "two kinds", RUNS[1]).all > 1.5 * STATIONARY
