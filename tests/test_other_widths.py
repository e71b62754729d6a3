"""What is padded wrongly is not padded for long, and what is padded rightly is looked at seldom."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.report import StepReport
from mlx_spec.control.step_prices import StepPrices
from scripts.simulated.play import SimulatedRow
from tests.test_pass_costs import STAIRS

# Milliseconds of passes, and a table of them that was unlucky at 32 tokens and lucky at 40.
TRUE = {1: 59, 8: 76, 16: 95, 24: 118, 32: 131, 33: 134, 40: 146, 48: 155, 64: 190}
UNLUCKY = {**TRUE, 32: 140, 40: 128}


def steps(
    held: Mapping[int, float],
    truth: Mapping[int, float],
    rows: int,
    count: int,
    *,
    seed: int = 1,
    speed: float = 1.0,
    clean: float = 1.0,
) -> list[int]:
    """Tokens of each of ``count`` plain steps, the next one launched before one is read.

    Args:
        held: the table, in milliseconds.
        truth: what passes take.
        speed: times that a step takes, beside what was timed.
        clean: share of steps whose time says something.
    """
    costs, rng = PassCosts(), random.Random(seed)
    costs.put({tokens: ms / 1e3 for tokens, ms in held.items()})
    prices, batch = StepPrices(costs, packs=True), [SimulatedRow(9) for _ in range(rows)]
    ran, flight = list[int](), costs.width(rows)
    for _ in range(count):
        tokens, flight = flight, costs.width(rows)
        seconds = speed * truth[tokens] / 1e3 * rng.lognormvariate(0, 0.05)
        seconds *= 1.5 if rng.random() < 0.03 else 1.0
        told = rng.random() < clean
        prices.observe(StepReport(batch, [0] * rows, [0] * rows, seconds, told, tokens=tokens))
        ran.append(tokens)
    return ran


def loss(ran: list[int], truth: Mapping[int, float], best: int) -> float:
    """What was lost, as a share of the time that the best width takes."""
    return sum(truth[tokens] for tokens in ran) / (truth[best] * len(ran)) - 1.0


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.4])
def test_a_wider_pass_that_is_dearer_than_thought_leads_back(speed: float) -> None:
    for seed in range(50):
        ran = steps(UNLUCKY, TRUE, 32, 300, seed=seed, speed=speed)
        assert ran[0] == 40
        assert loss(ran, TRUE, 32) < 0.03  # of 0.11
        assert ran[-100:].count(32) >= 90


def test_so_it_does_where_few_steps_say_anything() -> None:
    for seed in range(50):
        ran = steps(UNLUCKY, TRUE, 32, 2000, seed=seed, clean=0.2)
        assert ran[-100:].count(32) >= 90


@pytest.mark.parametrize(("rows", "wide"), [(12, 16), (24, 32)])
def test_a_cheaper_pass_stays(rows: int, wide: int) -> None:
    """And what is spent on looking is little: a hundredth of the time."""
    held = {n: float(ms) for n, ms in STAIRS.items()}
    for seed in range(50):
        ran = steps(held, held, rows, 1000, seed=seed, speed=1.2)
        assert ran.count(rows) >= 3
        assert loss(ran, held, wide) < 0.01
        assert loss(ran[-300:], held, wide) < 0.01


def test_what_is_not_padded_is_left_alone() -> None:
    assert set(steps(TRUE, TRUE, 32, 500)) == {32}


def test_more_tokens_than_were_timed_are_run_as_they_are() -> None:
    assert set(steps(TRUE, {**TRUE, 192: 400}, 192, 20)) == {192}
