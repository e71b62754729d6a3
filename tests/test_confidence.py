"""Guesses that a drafter is sure of are verified before those of which it is not."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_spec import SpeculationConfig
from mlx_spec.control.allocation import Prices, StepBudget, worth
from mlx_spec.control.confidence import Confidence, Usual
from mlx_spec.control.offers import NOBODY
from mlx_spec.control.replay import replay
from mlx_spec.control.report import StepReport
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.control.surest import Prospect, Settling, Surest
from mlx_spec.decoding.setup import may_be_read
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.ranks import LONE
from scripts.simulated.machines import COMPUTE, CPU, DRAFTER, FLAT, SHAPES, TILES_5, Machine
from scripts.simulated.play import Conditions, SimulatedRow, Simulation
from scripts.simulated.texts import Workload, even
from tests.policies import adaptive

PRICES = Prices([1.0 + 0.1 * n for n in range(13)], [0.0, 0.05, 0.1, 0.15])


def taught(confidence: Confidence, true: Any, said: Any, steps: int = 400) -> None:
    """Steps of rows whose guesses come true with chance ``true(number)``."""
    luck = random.Random(1)
    for _ in range(steps):
        row = [said(luck) for _ in range(3)]
        accepted = 0
        while accepted < 3 and luck.random() < true(row[accepted]):
            accepted += 1
        confidence.say([row])
        confidence.add([row], [accepted])


def test_a_number_becomes_the_share_of_such_guesses_that_came_true() -> None:
    """Stops a drafter's own word from being taken for a chance: one that boasts, and one of whose
    numbers nothing follows."""
    boasting, idle = Confidence(), Confidence()
    taught(boasting, lambda number: number**2, lambda luck: luck.random())
    taught(idle, lambda number: 0.3, lambda luck: luck.random())
    for number in (0.25, 0.45, 0.65, 0.95):
        assert boasting.chance(number) == pytest.approx(number**2, abs=0.12)
        assert idle.chance(number) == pytest.approx(0.3, abs=0.15)
    assert boasting.reaching([0.95, 0.45])[1] < boasting.reaching([0.95, 0.95])[1]


def test_what_was_not_tested_is_not_counted() -> None:
    confidence = Confidence()
    for _ in range(50):
        confidence.add([[0.95, 0.05, 0.95]], [1])  # the second was wrong, the third never looked at
    assert confidence.chance(0.95) > 0.99
    assert confidence.chance(0.05) < 0.02


@pytest.mark.parametrize("rows", [1, 4])
def test_what_picking_brings_is_that_of_steps_like_those_of_late(rows: int) -> None:
    """By hand: each step verifies what is worth its time, which is worth what all of them bring. A
    plan that gives one row one guess in every step would promise less than no draft."""
    luck = random.Random(2)
    usual = [[0.95 if luck.random() < 0.4 else 0.05] for _ in range(24)]
    dear = Prices([0.5 + 0.5 * (rows + n) for n in range(5)], [0.0, 0.05])
    found = replay(Usual(usual, [0.41]), rows, dear)
    groups = [[row[0] for row in (usual + usual)[at : at + rows]] for at in range(24)][::rows]
    speed = rows / dear.verify[0]
    for _ in range(5):
        tokens = seconds = 0.0
        for group in groups:
            likely = sorted(group, reverse=True)
            values = [sum(likely[:n]) - speed * dear.verify[n] for n in range(rows + 1)]
            best = values.index(max(values))
            tokens += rows + sum(likely[:best])
            seconds += dear.verify[best] + dear.draft[1]
        speed = tokens / seconds
    assert found.speed == pytest.approx(speed, rel=0.01)
    assert found.speed > 1.02 * rows / dear.verify[0]
    mean = sum(row[0] for row in usual) / 24
    assert rows > 1 or (1 + mean) / (dear.verify[1] + dear.draft[1]) < 1.0


def test_as_many_rows_as_there_are_are_played_again() -> None:
    """More than were heard, or fewer: each brings what it does."""
    usual = Usual([[0.9, 0.8], [0.1, 0.01]] * 24, [0.5, 0.5])
    flat = Prices([1.0 + 1e-6 * n for n in range(2 * 400)], [0.0, 0.01, 0.02])
    for rows in (1, 2, 7, 48, 100, 256):
        found = replay(usual, rows, flat)
        assert found.tokens / rows == pytest.approx(1 + 1.81 / 2, abs=0.1), rows


def test_time_is_worth_what_it_usually_brings() -> None:
    """A lucky step verifies more, an unlucky one less; the step's own speed would say otherwise."""
    verify, speed = PRICES.verify, 4.0
    for row in ([[0.9, 0.8, 0.7]], [[0.41, 0.3]], [[0.39, 0.1]], [[0.1], [0.8]]):
        pool = sorted((chance for one in row for chance in one), reverse=True)
        values = [sum(pool[:n]) - speed * verify[n] for n in range(len(pool) + 1)]
        guesses, brings = worth(row, verify, speed)
        assert guesses == values.index(max(values))
        assert brings == pytest.approx(sum(pool[:guesses]))


def settling(rows: int, most: int, **more: Any) -> Settling:
    view = Prospect([[0.5] * most] * rows, PRICES, StepBudget(2, 3, 5.0, 1.25), 3.0, picked=True)
    return replace(Settling([NOBODY] * rows, [most] * rows, [()] * rows, view), **more)


def test_the_surest_of_all_rows_are_picked_and_no_row_beyond_its_room() -> None:
    rows: list[Any] = [SimulatedRow(9) for _ in range(3)]
    surest = Surest(Confidence())
    sure = [[0.9, 0.9, 0.9], [0.05, 0.9, 0.9], [0.9, 0.2, 0.1]]
    assert surest.pick(rows, sure, settling(3, 3)) == [3, 0, 1]
    assert surest.pick(rows, sure, settling(3, 3, lengths=[1, 3, 0])) == [1, 0, 0]
    found = settling(3, 3, picks=[NOBODY, 0, NOBODY], found=[(), (0.99, 0.9, 0.1), ()])
    assert surest.pick(rows, sure, found) == [3, 2, 1], "what was found takes part"


def test_a_pass_more_is_made_while_somebody_is_sure() -> None:
    rows: list[Any] = [SimulatedRow(9) for _ in range(2)]
    surest = Surest(Confidence())
    surest.confidence.say([[0.5, 0.5, 0.5]] * 30)
    surest.budget(2, PRICES)
    settled = settling(2, 3)
    cheap = Prices([1.0 + 0.01 * n for n in range(13)], PRICES.draft)
    settled = replace(settled, view=replace(settled.view, prices=cheap))
    assert not surest.enough(rows, [[0.9], [0.1]], settled)
    assert surest.enough(rows, [[0.1], [0.1]], settled)
    assert surest.enough(rows, [[0.9, 0.9, 0.9]] * 2, settled), "no more than there is room for"
    alone = replace(settled, picks=[0, NOBODY], found=[(0.9,), ()])
    assert surest.enough(rows, [[0.9], [0.1]], alone), "who has an offer does not ask for passes"


def test_a_row_that_goes_worse_than_its_drafter_says_is_given_less() -> None:
    good, bad = SimulatedRow(99), SimulatedRow(99)
    surest = Surest(Confidence())
    rows: list[Any] = [good, bad]
    for _ in range(12):
        lengths = surest.pick(rows, [[0.6, 0.6], [0.6, 0.6]], settling(2, 2))
        surest.observe(StepReport(rows, [2, 2], [2, 0], 1.0, True))
    assert lengths[0] > lengths[1]


def speed_of(machine: Machine, batch: int, *, reads: bool, seed: int = 0) -> float:
    """Tokens per second of a policy on texts whose next tokens are easy or hard, one by one."""
    luck = random.Random(seed)
    easy = [luck.random() < 0.4 for _ in range(5000)]
    policy = adaptive(machine, pair=PairMeasurements(), reads=reads)
    rows: list[Any] = [SimulatedRow(10**9, length=32, said=700 * n) for n in range(batch)]
    prices = machine.prices()
    tokens = seconds = 0.0
    for _ in range(300):
        lengths = passes = policy.choose(rows)
        chances = [[0.92 if easy[(r.said + j) % 5000] else 0.08 for j in range(8)] for r in rows]
        made = max(passes)
        if policy.picks and made:
            settled = policy.settle(rows, [], [True] * batch)
            lengths = settled.lengths
            if settled.reads:
                made = 1
                while made < max(settled.lengths) and not policy.enough(
                    rows, [row[:made] for row in chances]
                ):
                    made += 1
                lengths = policy.pick(rows, [row[:made] for row in chances])
        accepted = []
        for row, length, own in zip(rows, lengths, chances, strict=True):
            n = 0
            while n < length and luck.random() < own[n]:
                n += 1
            accepted.append(n)
            row.emit(n + 1)
        took = machine.seconds(batch, prices.tokens(lengths), made)
        report = StepReport(
            rows,
            lengths,
            accepted,
            took,
            True,
            longest=max(lengths),
            tokens=prices.tokens(lengths),
            passes={DRAFTER: made} if made else {},
        )
        policy.observe(report)
        tokens += sum(accepted) + batch
        seconds += took
    return tokens / seconds


def mean_speed(machine: Machine, batch: int, *, reads: bool) -> float:
    """Of several texts, where one has much luck."""
    seeds = range(4 if batch == 1 else 1)
    return sum(speed_of(machine, batch, reads=reads, seed=seed) for seed in seeds) / len(seeds)


@pytest.mark.parametrize("machine", [FLAT, TILES_5, COMPUTE, CPU], ids=lambda one: one.name)
def test_one_that_boasts_is_found_out(machine: Machine) -> None:
    """Sure of every guess, and never right: on requests of 48 tokens, as any hostile drafter."""
    for rows in (1, 4):
        work = Workload(rows, lambda rng: even(0.0), tokens=lambda rng: 48)
        says = Conditions(seed=1, says=lambda chance: 0.9)
        run = Simulation(adaptive(machine, reads=True), machine, work, says).steps(300)
        assert run.merit() > 0.98 * rows / machine.seconds(rows, rows, 0), rows


@pytest.mark.parametrize(
    ("machine", "batch", "gain"),
    [(FLAT, 1, 1.03), (TILES_5, 4, 1.03), (TILES_5, 16, 1.08), (COMPUTE, 16, 1.08)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_picking_is_quicker_where_tokens_differ(machine: Machine, batch: int, gain: float) -> None:
    """Of what it does better than the best plan by averages."""
    assert mean_speed(machine, batch, reads=True) > gain * mean_speed(machine, batch, reads=False)


@pytest.mark.parametrize("machine", SHAPES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("batch", [1, 16])
def test_picking_is_never_much_worse_than_planning_or_not_drafting(
    machine: Machine, batch: int
) -> None:
    picked = mean_speed(machine, batch, reads=True)
    assert picked > 0.97 * mean_speed(machine, batch, reads=False)
    assert picked > 0.98 * batch / machine.seconds(batch, batch, 0)


def test_where_it_would_be_wrong_or_slow_nobody_is_asked() -> None:
    """Rejection sampling would be biased by it: what was thought likely would stand oftener than it
    may; several ranks would have to agree on it."""
    several = SimpleNamespace(several=True)
    assert may_be_read(SpeculationConfig(), LONE) == on_cpu()
    assert not may_be_read(SpeculationConfig(acceptance="rejection"), LONE)
    assert not may_be_read(SpeculationConfig(), several)  # type: ignore[arg-type]
