"""Regret: what a policy says less than one who knows, in expected tokens per second.

Of several runs together, which differ in all luck: whose guesses stood, and how long steps took.
Tokens are counted as each step would say them on average, and seconds without noise, so that luck
moves only what the policy made of it. The best is what ``Clairvoyant`` reaches, who knows all
chances and prices; where each token has its own, what ``Hearer`` does on the same texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from .knowing import Clairvoyant, Hearer, Known
from .machines import M3_ULTRA_CHANCES, Machine
from .play import Conditions, Run, Simulation
from .texts import TOKENS, Workload, even, mixed, tokenwise

Make = Callable[[Machine], Any]

MOST = 6  # guesses of a row
STEPS, BEFORE, CONVERGED = 300, 200, 30
# Chances that a guess stands, of steady texts, and of those that become others.
TEXTS = ((0.0,), (0.3,), (0.6,), M3_ULTRA_CHANCES, (0.95,))
SHIFTS = (((0.9,), (0.2,)), ((0.2,), (0.9,)), ((0.0,), (0.8,)), ((0.9,), (0.6,)))


@dataclass(frozen=True)
class Effort:
    """How long a setting is played: one row has more luck than many.

    Attributes:
        runs: that differ in all luck.
        steps: that count.
        before: of other texts, where these shift.
    """

    runs: int
    steps: int = STEPS
    before: int = BEFORE


@dataclass(frozen=True)
class Lost:
    """Regret of one setting, as shares of what the best says.

    Attributes:
        all: over all steps that count.
        later: from the 30th on.
        worst: over all steps, of the run that lost most.
    """

    all: float
    later: float
    worst: float


def batch(rows: int, chances: Seq[float]) -> Workload:
    """Endless rows of one kind."""
    return Workload(rows, lambda rng: even(*chances))


def best(machine: Machine, work: Workload, most: int = MOST) -> float:
    """Expected tokens per second of one who knows."""
    knows = Clairvoyant(machine, most)
    return Simulation(knows, machine, work, Conditions(noise=0.0)).steps(2).merit()


def together(runs: Seq[Run], first: int = 0) -> float:
    """Expected tokens per second of all runs, from a step on."""
    tokens = sum(sum(run.expected[first:]) for run in runs)
    return tokens / sum(sum(run.seconds[first:]) for run in runs)


def steady(make: Make, machine: Machine, work: Workload, effort: Effort) -> Lost:
    """Of texts that stay as they are."""
    return _lost(_played(make, machine, work, effort), best(machine, work))


def shifted(
    make: Make, machine: Machine, rows: int, texts: tuple[Seq[float], Seq[float]], effort: Effort
) -> Lost:
    """Of the steps after all texts of a batch have become others."""
    before, after = texts
    played = []
    for seed in range(effort.runs):
        game = Simulation(make(machine), machine, batch(rows, before), Conditions(seed=seed))
        game.steps(effort.before)
        for row in game.rows:
            row.text = even(*after)
        played.append(game.steps(effort.steps))
    return _lost(played, best(machine, batch(rows, after)), effort.before)


def visited(make: Make, machine: Machine, rows: int, effort: Effort) -> Lost:
    """Of requests of all categories, of 40 to 200 tokens, that come and go."""
    work = visits(rows)
    knowing = _played(lambda machine: Clairvoyant(machine, MOST), machine, work, effort)
    return _lost(_played(make, machine, work, effort), together(knowing))


def visits(rows: int) -> Workload:
    """Requests of all categories, each followed by another."""
    return Workload(rows, mixed, tokens=lambda rng: rng.randint(40, 200))


def hearer(machine: Machine, work: Workload, usual: float, steps: int = STEPS) -> Hearer:
    """The best of those who hear in turn, by trying how bold one should be."""
    speed = best(machine, batch(work.rows, (0.0,)))
    found: tuple[Hearer, float] | None = None
    for bold in (1.0, None, 0.0, 0.5, 2.0, 4.0):
        knows = Hearer(machine, MOST, Known(speed, usual, bold))
        conditions = Conditions(seed=99, says=_true)
        reached = Simulation(knows, machine, work, conditions).steps(steps).merit()
        if found is None or reached > found[1]:
            found = knows, reached
        speed = found[1]
    assert found is not None
    return Hearer(machine, MOST, replace(found[0].knows, speed=speed))


def picked(make: Make, machine: Machine, rows: int, tokens: str, effort: Effort) -> Lost:
    """Of texts in which each token has its own chance, and the drafter says what it is."""
    played = _played(make, machine, _texts(rows, tokens), effort, _true)
    return _lost(played, _heard(machine, rows, tokens, effort))


def _true(chance: float) -> float:
    return chance


def _texts(rows: int, tokens: str) -> Workload:
    return Workload(rows, lambda rng: tokenwise(rng, TOKENS[tokens]))


@cache
def _heard(machine: Machine, rows: int, tokens: str, effort: Effort) -> float:
    """What one says who knows, on the same texts."""
    draw, rng, work = TOKENS[tokens], random.Random(0), _texts(rows, tokens)
    usual = sum(draw(rng) for _ in range(4000)) / 4000
    knows = hearer(machine, work, usual, effort.steps)
    return together(_played(lambda machine: knows, machine, work, effort, _true))


def _played(
    make: Make,
    machine: Machine,
    work: Workload,
    effort: Effort,
    says: Callable[[float], float] | None = None,
) -> list[Run]:
    return [
        Simulation(make(machine), machine, work, Conditions(seed=seed, says=says)).steps(
            effort.steps
        )
        for seed in range(effort.runs)
    ]


def _lost(runs: Seq[Run], goal: float, first: int = 0) -> Lost:
    return Lost(
        1 - together(runs, first) / goal,
        1 - together(runs, first + CONVERGED) / goal,
        max(1 - run.merit(first) / goal for run in runs),
    )
