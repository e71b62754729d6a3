"""What constraints force beside plain rows: these lose nothing by it, on any machine.

Played on machines whose prices are known: a text that is forced more often than not, beside texts
that bring no guesses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from mlx_spec.control.given import GivenGuesses
from mlx_spec.control.offers import Offer
from mlx_spec.control.ration import Ration
from mlx_spec.control.report import StepReport
from scripts.simulated.machines import COMPUTE, CPU, FLAT, LINEAR, TILES_5, Machine

MACHINES = [FLAT, LINEAR, TILES_5, COMPUTE, CPU]
STEPS = 1500
FORCED = (0, 5, 3, 0, 6)  # guesses that one step after the other could verify


@dataclass(eq=False)
class Text:
    """As a policy sees a request."""

    brings_guesses: bool
    evidence: Any = None
    length: int = 100
    remaining: int = 10_000
    room: int = 9_999


@dataclass
class Played:
    """What became of some steps.

    Attributes:
        slower: how much longer than plain ones they took.
        guesses: that were verified, a step and row that has any.
    """

    slower: float
    guesses: float


def play(machine: Machine, guided: int, plain: int, noise: float = 0.0) -> Played:
    """Steps of some rows, in seconds of the machine."""
    policy = GivenGuesses(10, lambda: True, lambda: machine.packs)
    rows = [Text(True) for _ in range(guided)] + [Text(False) for _ in range(plain)]
    rng, spent, verified = random.Random(3), 0.0, 0
    for step in range(STEPS):
        policy.choose(rows)
        found = [FORCED[(step + row) % len(FORCED)] for row in range(guided)]
        offers = [Offer("forced", [*found, *[0] * plain])] if any(found) else []
        lengths = policy.settle(rows, offers, [False] * len(rows)).lengths
        seconds = machine.verify(len(rows) + sum(lengths))
        spent, verified = spent + seconds, verified + sum(lengths)
        seen = seconds * rng.lognormvariate(0, noise) * (8 if noise and rng.random() < 0.01 else 1)
        policy.observe(StepReport(rows, lengths, lengths, seen, clean=step % 7 > 0))
    slower = spent / (STEPS * machine.verify(len(rows))) - 1
    return Played(slower, verified / STEPS / guided)


@pytest.mark.parametrize("noise", [0.0, 0.08])
@pytest.mark.parametrize("plain", [1, 3, 7])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda one: one.name)
def test_plain_rows_lose_nothing_and_the_others_gain(
    machine: Machine, plain: int, noise: float
) -> None:
    """With hiccups and uncertain clocks too, and prompts being read in some of the steps."""
    played = play(machine, 1, plain, noise)
    assert played.slower < 0.03  # of which 0.02 are what it may; the rest is the clock's
    assert played.guesses > 0.02


@pytest.mark.parametrize("noise", [0.0, 0.08])
@pytest.mark.parametrize("machine", [FLAT, COMPUTE], ids=lambda one: one.name)
def test_where_more_tokens_cost_nothing_all_are_taken(machine: Machine, noise: float) -> None:
    assert play(machine, 1, 3, noise).guesses > 0.9 * sum(FORCED) / len(FORCED)


def test_without_plain_rows_nobody_is_spared() -> None:
    assert play(LINEAR, 3, 0).guesses == pytest.approx(sum(FORCED) / len(FORCED))


def test_else_they_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ration, "most", lambda self, rows, offered: offered)
    assert play(LINEAR, 1, 3).slower > 0.3
