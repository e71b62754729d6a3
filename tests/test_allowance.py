"""Seconds that may go into finding out, without a clock."""

from __future__ import annotations

import pytest

from mlx_spec.control.allowance import Allowance


def test_a_hundredth_of_the_time_of_steps_is_earned() -> None:
    made = Allowance()
    assert made.earn(100.0) == 0.0
    for step in range(1, 101):
        made.earn(100.0 + 0.1 * step)
    assert made.left == pytest.approx(0.1)


def test_a_pause_is_no_work() -> None:
    made = Allowance()
    made.earn(0.0)
    made.earn(1e6)
    assert made.left == pytest.approx(Allowance.SHARE * Allowance.LONGEST)


def test_a_clock_that_goes_back_takes_nothing() -> None:
    made = Allowance()
    made.earn(5.0)
    assert made.earn(4.0) == 0.0


def test_what_is_spent_beyond_it_is_earned_first() -> None:
    made = Allowance()
    made.earn(0.0)
    made.spend(0.2, 0.2)
    assert made.left == pytest.approx(-0.2)
    # The time that was spent earns nothing.
    made.earn(0.3)
    assert made.left == pytest.approx(-0.2 + 0.001)
