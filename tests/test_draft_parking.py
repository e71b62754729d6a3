"""Speculation stops where it does not pay, tries again in time, and follows what changes."""

from __future__ import annotations

import pytest

from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.shared import PairMeasurements
from scripts.simulated.machines import (
    CPU,
    DEAR_DRAFT,
    FLAT,
    LINEAR,
    M1_ULTRA,
    SHAPES,
    TILES_32,
    Machine,
)
from scripts.simulated.play import Conditions, Simulation
from scripts.simulated.regret import batch, best
from scripts.simulated.texts import Workload, even, shifting
from tests.policies import adaptive
from tests.test_draft_length import named, plain

MACHINES = (*SHAPES, M1_ULTRA)


@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_a_hostile_drafter_costs_next_to_nothing(machine: Machine) -> None:
    """Stops a policy that goes on drafting, one that never tries again, and probes that cost more
    than a hundredth: on requests of 48 tokens, on a machine that was calibrated and nothing else.
    """
    for count in (1, 4, 16):
        work = Workload(count, lambda rng: even(0.0), tokens=lambda rng: 48)
        simulation = Simulation(adaptive(machine), machine, work, Conditions(seed=5))
        run = simulation.steps(600)
        assert run.usual(30) == 0
        assert 0 < run.share_drafting(30) < 0.4  # most where a draft is free
        assert run.merit() > 0.98 * plain(machine, count), count


@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_the_first_request_with_a_hostile_drafter(machine: Machine) -> None:
    """A single request of 48 tokens that finds out for all that follow."""
    work = Workload(1, lambda rng: even(0.0), tokens=lambda rng: 48, replace=False)
    run = Simulation(adaptive(machine), machine, work, Conditions(seed=6)).steps(60)
    assert run.goodput() > 0.93 * plain(machine, 1)


def test_texts_that_shift_one_after_the_other() -> None:
    """Stops rows that are judged by each other: half of them turn hard while the others go on."""
    work = Workload(8, lambda rng: shifting((0.9,), (0.1,), rng.choice([300, 10**9])))
    simulation = Simulation(adaptive(TILES_32), TILES_32, work, Conditions(seed=3))
    run = simulation.steps(400)
    guesses = [sum(row) for row in zip(*run.lengths[350:], strict=True)]
    easy = [n for n, row in zip(guesses, simulation.rows, strict=True) if row.chance(0) > 0.5]
    hard = [n for n, row in zip(guesses, simulation.rows, strict=True) if row.chance(0) < 0.5]
    assert easy
    assert hard
    assert min(easy) > 2 * max(hard)


def test_no_oscillation_where_drafts_just_pay_or_just_do_not() -> None:
    """Stops a policy that crosses K = 0 again and again because noise does."""
    for machine, chance in ((LINEAR, 0.62), (LINEAR, 0.58), (DEAR_DRAFT, 0.62), (CPU, 0.5)):
        run = Simulation(adaptive(machine), machine, batch(6, (chance,)), Conditions(seed=8))
        probing = run.steps(400)
        # A probe is a draft of one step: two switches, and one probe in sixteen steps at most.
        assert probing.switches <= 2 * 400 / 16
        assert probing.merit() > 0.97 * best(machine, batch(6, (chance,))), machine.name


def test_it_is_the_hysteresis_that_keeps_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops an edge that is crossed by noise: at 0.62 a dear draft is worth what plain decoding is.
    Planted: it begins as soon as it promises anything, and ends where that is little.
    """

    def switches(**options: float) -> int:
        work, policies = batch(6, (0.62,)), [adaptive(DEAR_DRAFT, **options) for _ in range(4)]
        games = [
            Simulation(policy, DEAR_DRAFT, work, Conditions(seed=seed))
            for seed, policy in enumerate(policies)
        ]
        return sum(game.steps(400).switches for game in games)

    assert switches() <= 4 * 2 * 400 / 16
    monkeypatch.setattr(AdaptiveDrafts, "STAY", 1.03)
    assert switches(hysteresis=0.0) > 1.5 * 4 * 2 * 400 / 16


@pytest.mark.parametrize("times", [0.3, 4.0])
@pytest.mark.parametrize("machine", [FLAT, CPU, DEAR_DRAFT], ids=named)
def test_a_machine_that_gets_slower_or_quicker(machine: Machine, times: float) -> None:
    """Stops a table that is taken for the machine as it is now: another program has come, or one
    was there when it was timed. What it says of one length against another still holds.
    """
    other = Machine(
        "other", lambda m: times * machine.verify(m), lambda b: times * machine.draft(b)
    )
    for chance in (0.3, 0.8):
        simulation = Simulation(adaptive(machine), machine, batch(4, (chance,)), Conditions(seed=8))
        simulation.steps(100)
        simulation.exchange(other)
        simulation.steps(200)
        assert simulation.run.merit(100) > 0.95 * best(other, batch(4, (chance,)))


def test_a_pair_that_was_parked_gets_another_chance_in_later_calls() -> None:
    """Stops what one call learned from binding all later ones: calls shorter than the probe
    interval would otherwise never probe, however well the draft would do now.
    """
    pair, merits = PairMeasurements(), []
    for call in range(80):
        text = even(0.0 if call < 10 else 1.0)
        work = Workload(1, lambda rng, text=text: text, tokens=lambda rng: 24, replace=False)
        policy = adaptive(LINEAR, pair=pair)
        merits.append(Simulation(policy, LINEAR, work, Conditions(seed=call)).steps(50).goodput())
    assert sum(merits[60:]) / 20 > 1.15 * plain(LINEAR, 1)
