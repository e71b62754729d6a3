"""Many looks at what passes take, on machines that are never twice as fast."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from statistics import mean, median

import pytest

from mlx_spec.control.looks import Looks, combined, usual
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.model import pass_timing
from mlx_spec.model.pass_timing import PassTimer
from tests.test_other_widths import TRUE
from tests.test_pass_costs import STAIRS


def test_the_middle() -> None:
    assert usual([5.0]) == 5
    assert usual([5.0, 6.0]) == 5.5
    assert usual([9.0, 5.0]) == 5  # a hiccup
    assert usual([9.0, 1.0, 5.0]) == 5
    assert usual([9.0, 1.0, 5.0, 6.0]) == 5.5


def test_looks_are_compared_within_themselves() -> None:
    looks = [{1: 60, 16: 100, 32: 130}, {1: 90, 16: 150, 32: 300}, {1: 48, 16: 80, 32: 102}]
    seconds, speeds = combined(looks)
    assert seconds == {1: 60, 16: 100, 32: pytest.approx(130, rel=0.02)}
    assert speeds == [1, 1.5, 0.8]


def test_a_look_at_little_says_no_speed_where_more_is_asked_of_it() -> None:
    looks = [{1: 60, 2: 61, 3: 62, 4: 630}, {4: 63}]
    assert combined(looks, least=2) == ({1: 60, 2: 61, 3: 62, 4: 63}, [1, 1])
    assert combined(looks, least=1)[1] == [1, pytest.approx(0.1)]


def test_nothing_and_one() -> None:
    assert combined([]) == ({}, [])
    assert combined([{1: 2.0}]) == ({1: 2.0}, [1])


def test_the_newest_looks_count() -> None:
    looks = Looks()
    looks.add({1: 1.0, 64: 9.0})
    for _ in range(looks.MOST):
        looks.add({1: 1.0, 2: 3.0})
    assert looks.held[0] == {64: 9.0}  # seen once
    assert len(looks.held) == looks.MOST + 1
    looks.add({})
    assert len(looks.held) == looks.MOST + 1


class Wandering:
    """A machine whose speed wanders from pass to pass and jumps from look to look, between 0.7 and
    1.4, with 5% of noise, and 3 passes of 100 that take half as long again."""

    def __init__(self, truth: Mapping[int, float], seed: int) -> None:
        self.truth, self.rng, self.now, self._log = truth, random.Random(seed), 0.0, 0.0

    def run(self, tokens: int) -> None:
        self._go(self._log + self.rng.gauss(0, 0.03))
        seconds = self.truth[tokens] / 1e3 * math.exp(self._log) * self.rng.lognormvariate(0, 0.05)
        self.now += seconds * (1.5 if self.rng.random() < 0.03 else 1.0)

    def jump(self) -> None:
        self._go(self.rng.uniform(math.log(0.7), math.log(1.4)))

    def _go(self, to: float) -> None:
        self._log = min(max(to, math.log(0.7)), math.log(1.4))

    def table(self, looks: int) -> PassCosts:
        """What is known after so many."""
        costs = PassCosts()
        for _ in range(looks):
            self.jump()
            timer = PassTimer(self.now + 20.0, clock=lambda: self.now)
            costs.put(timer.time(lambda tokens: tokens, list(self.truth)))  # type: ignore[arg-type, return-value]
        return costs


@pytest.fixture
def wandering(
    monkeypatch: pytest.MonkeyPatch, own_time: Callable[..., object]
) -> Callable[[Mapping[int, float], int], Wandering]:
    """Makes one, whose passes are what is timed."""
    monkeypatch.setattr(PassTimer, "time", own_time)

    def make(truth: Mapping[int, float], seed: int) -> Wandering:
        made = Wandering(truth, seed)
        monkeypatch.setattr(pass_timing.mx, "eval", made.run)
        return made

    return make


Make = Callable[[Mapping[int, float], int], Wandering]


def test_points_do_not_drift_apart(wandering: Make) -> None:
    off, padded = list[float](), 0
    for seed in range(30):
        costs = wandering(TRUE, seed).table(50)
        found = {tokens: costs.points[1][tokens] / ms for tokens, ms in TRUE.items()}
        off += [one / median(found.values()) - 1.0 for one in found.values()]
        padded += costs.width(32) != 32
    assert math.sqrt(mean(one * one for one in off)) < 0.025
    assert abs(mean(off)) < 0.01
    assert padded <= 1


@pytest.mark.parametrize("looks", [5, 30])
def test_what_is_cheaper_padded_is_found(wandering: Make, looks: int) -> None:
    stairs = {**STAIRS, 20: 190}
    tables = [wandering(stairs, seed).table(looks) for seed in range(40)]
    for tokens, wide, least in ((12, 16, 39), (20, 32, 34), (24, 32, 34)):
        assert sum(costs.width(tokens) == wide for costs in tables) >= least
    assert all(costs.width(32) == 32 for costs in tables)
