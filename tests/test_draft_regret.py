"""What a policy says less than one who knows: by setting, of several runs together.

``scripts.simulated.regret`` says how it is counted. Runs are fewer here than in the report of
``scripts/simulate.py``, and settings are the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec.control import shifts
from scripts.simulated.machines import CPU, FLAT, SHAPES, TILES_5, Machine
from scripts.simulated.regret import (
    SHIFTS,
    TEXTS,
    batch,
    picked,
    shifted,
    steady,
)
from scripts.simulated.texts import TOKENS
from tests.policies import adaptive
from tests.test_draft_length import named

STATIONARY, SHIFTED = 0.03, 0.08  # most regret
STILL, MOVED = {1: 6, 4: 5, 16: 1}, {1: 4, 4: 2, 16: 1}  # runs of a setting, by rows


def reading(machine: Machine) -> Any:
    """A policy that may ask how sure the drafter is."""
    return adaptive(machine, reads=True)


@pytest.mark.parametrize("machine", SHAPES, ids=named)
def test_regret_of_steady_texts_is_small(machine: Machine) -> None:
    """Stops a policy that is slower than no speculation, stuck at a poor length, or long in
    learning: within 30 steps it is there. Batch sizes on both sides of where drafts pay.
    """
    for rows, runs in STILL.items():
        for chances in TEXTS:
            lost = steady(adaptive, machine, batch(rows, chances), runs)
            assert lost.all < STATIONARY, (rows, chances)
            assert lost.later < STATIONARY, (rows, chances)


@pytest.mark.parametrize("machine", SHAPES, ids=named)
def test_regret_after_a_shift_is_bounded(machine: Machine) -> None:
    """Stops a policy that lives on its past: texts turn hard to guess, or easy."""
    for rows, runs in MOVED.items():
        for texts in SHIFTS:
            assert shifted(adaptive, machine, rows, texts, runs).all < SHIFTED, (rows, texts)


def test_texts_that_turn_hard_are_noticed_within_30_steps() -> None:
    """Stops averages that are right in the end: of one row that is long."""
    for machine in (TILES_5, CPU):
        lost = shifted(adaptive, machine, 1, ((0.9,), (0.2,)), 6)
        assert lost.later < STATIONARY, machine.name


def test_it_is_the_test_for_shifts_that_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops one that is there and says nothing: what follows a shift is then lost to averages."""
    noticed = shifted(adaptive, CPU, 1, ((0.9,), (0.2,)), 6)
    monkeypatch.setattr(shifts, "BOUND", 1e9)
    unnoticed = shifted(adaptive, CPU, 1, ((0.9,), (0.2,)), 6)
    assert unnoticed.all > SHIFTED > 1.5 * noticed.all
    assert unnoticed.later > STATIONARY > noticed.later


# --- a drafter that says how sure it is ---------------------------------------------------


@pytest.mark.parametrize(("machine", "rows"), [(FLAT, 1), (TILES_5, 4)], ids=["1", "4"])
def test_picking_is_near_one_who_knows_what_is_said(machine: Machine, rows: int) -> None:
    """Stops picks that follow the drafter's word further than it is worth, or not far enough: over
    texts whose tokens are easy and hard in different ways; and ears that are not used.
    """
    lost = [picked(reading, machine, rows, tokens, 2).later for tokens in TOKENS]
    assert sum(lost) / len(lost) < STATIONARY
    assert max(lost) < 1.5 * STATIONARY
    deaf = [picked(adaptive, machine, rows, tokens, 1).later for tokens in TOKENS]
    assert sum(deaf) > sum(lost) + STATIONARY
