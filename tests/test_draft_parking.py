"""Speculation stops where it does not pay, tries again in time, and follows what changes."""

from __future__ import annotations

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.shared import PairMeasurements
from tests.hardware import (
    ALL,
    DEAR_DRAFT,
    LINEAR,
    MEMORY_BOUND,
    MOST,
    STAIRCASE,
    Hardware,
    Simulation,
    adaptive,
    named,
)


def cannot_pay(hardware: Hardware, count: int) -> float | None:
    """An acceptance at which any draft loses clearly."""
    for chance in (0.4, 0.2, 0.0):
        chances = [chance] * count
        plain = hardware.goodput(chances, 0)
        if all(hardware.goodput(chances, k) < 0.95 * plain for k in range(1, MOST + 1)):
            return chance
    return None


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("hardware", ALL, ids=named)
def test_speculation_switches_itself_off_where_it_cannot_pay(
    hardware: Hardware, count: int
) -> None:
    """Stops a policy that goes on drafting, and one that never tries again."""
    chance = cannot_pay(hardware, count)
    if chance is None:
        pytest.skip("drafts are so cheap here that nothing is lost by them")
    run = Simulation(adaptive(), hardware, [chance] * count, noise=0.05, seed=5).steps(1500)
    assert run.usual(50) == 0
    assert 0 < run.share_drafting(200) < 0.08
    assert run.merit() > 0.97 * hardware.goodput([chance] * count, 0)


@pytest.mark.parametrize(
    ("hardware", "count", "within"),
    [
        pytest.param(*(MEMORY_BOUND, 4, 300), id="memory bound"),
        pytest.param(*(STAIRCASE, 1, 300), id="staircase"),
        pytest.param(*(LINEAR, 1, 1200), id="linear"),
        pytest.param(*(DEAR_DRAFT, 4, 1200), id="dear draft"),
    ],
)
def test_speculation_returns_when_acceptance_rises(
    hardware: Hardware, count: int, within: int
) -> None:
    """Stops a row that went through a hard passage from decoding plainly ever after. Where a
    trial costs little it must come soon; where it costs much it may take longer.
    """
    chances = [0.0] * count
    simulation = Simulation(adaptive(), hardware, chances, noise=0.05, seed=6)
    simulation.steps(600)
    assert simulation.run.share_drafting(200) < 0.08
    chances[:] = [1.0] * count
    simulation.steps(within)
    before = len(simulation.run.lengths)
    simulation.steps(50)
    _, goodput = hardware.best(chances, MOST)
    assert simulation.run.merit(before) > 0.9 * goodput


@pytest.mark.parametrize("hardware", [LINEAR, DEAR_DRAFT, STAIRCASE], ids=named)
def test_speculation_stops_when_acceptance_falls(hardware: Hardware) -> None:
    """Stops a policy that lives on its past: the text turns hard to guess."""
    chances = [1.0] * 8 if hardware is STAIRCASE else [1.0]
    simulation = Simulation(adaptive(), hardware, chances, noise=0.05, seed=7)
    simulation.steps(300)
    assert simulation.run.usual(100) > 0
    chances[:] = [0.0] * len(chances)
    simulation.steps(200)
    assert simulation.run.merit(300) > 0.8 * hardware.goodput(chances, 0)
    assert simulation.run.merit(400) > 0.93 * hardware.goodput(chances, 0)


@pytest.mark.parametrize(
    ("before", "after"), [(MEMORY_BOUND, LINEAR), (LINEAR, MEMORY_BOUND)], ids=["dearer", "cheaper"]
)
def test_costs_that_change_are_followed(before: Hardware, after: Hardware) -> None:
    """Stops a table that is believed for ever: another program takes the machine, or leaves it."""
    chances = [0.6] * 4
    simulation = Simulation(adaptive(), before, chances, noise=0.05, seed=8)
    simulation.steps(200)
    simulation.hardware = after
    simulation.steps(600)
    _, goodput = after.best(chances, MOST)
    assert simulation.run.merit(600) > 0.9 * goodput


def test_a_pair_that_was_parked_gets_another_chance_in_later_calls() -> None:
    """Stops what one call learned from binding all later ones: calls shorter than the probe
    interval would otherwise never probe, however well the draft would do now.
    """
    pair, config = PairMeasurements(), SpeculationConfig(num_draft_tokens=MOST)
    merits = []
    for call in range(80):
        chances = [0.0 if call < 10 else 1.0]
        policy = AdaptiveDraftLength(config, pair)
        simulation = Simulation(
            policy,
            LINEAR,
            chances,
            noise=0.05,
            new_tokens=lambda _: 24,
            replace=False,
            catch_up=1.0,
            seed=call,
        )
        merits.append(simulation.steps(50).goodput())
    plain = LINEAR.goodput([1.0], 0)
    assert sum(merits[60:]) / 20 > 1.15 * plain
