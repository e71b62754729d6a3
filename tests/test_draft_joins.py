"""Rows that leave and join: a batch that empties, and newcomers whose texts the drafter reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mlx_spec.control.fixed import FixedDraftLength
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
@pytest.mark.parametrize("count", [16, 32])
def test_short_texts_in_a_full_batch_are_never_much_slower(
    count: int, hardware: Hardware, chance: float
) -> None:
    """Stops a policy that cannot learn when a row ends in nearly every step: what was planned is
    dropped with the step built ahead, few steps are clean, and newcomers cost the drafter a pass.
    """
    options: dict[str, Any] = {"new_tokens": lambda rng: rng.randint(8, 24)}
    best, plain = best_fixed(hardware, [chance] * count, **options)
    goodput = total(adaptive(), hardware, [chance] * count, **options)
    assert goodput > 0.9 * best
    assert goodput > 0.95 * plain
