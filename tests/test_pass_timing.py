"""Passes are timed in little time, the coarse picture first, on a clock that a test turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlx_spec.control.pass_costs import EDGES
from mlx_spec.model import pass_timing
from mlx_spec.model.pass_timing import PassTimer, order_of


class Machine:
    """Passes take what a function says, on a clock of their own."""

    def __init__(self, seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ran, self._seconds = 0.0, [0] * 0, seconds
        self.hiccup_at = -1
        monkeypatch.setattr(pass_timing.mx, "eval", self._run)

    def _run(self, tokens: int) -> None:
        hiccup = 10 if len(self.ran) == self.hiccup_at else 1
        self.now += self._seconds(tokens) * hiccup
        self.ran.append(tokens)

    def timer(self, until: float, **more: Callable[[], bool]) -> PassTimer:
        return PassTimer(until, clock=lambda: self.now, **more)


@pytest.fixture(autouse=True)
def real_timer(monkeypatch: pytest.MonkeyPatch, own_time: Callable[..., object]) -> None:
    monkeypatch.setattr(PassTimer, "time", own_time)


def describe(tokens: int) -> int:
    return tokens


def test_small_models_are_timed_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda tokens: 1e-3 + 1e-5 * tokens, monkeypatch)
    timed = machine.timer(2.0).time(describe, EDGES)
    assert timed == {tokens: pytest.approx(1e-3 + 1e-5 * tokens) for tokens in EDGES}
    assert len(machine.ran) == 1 + 3 * len(EDGES)  # and no more, however much time there is


@pytest.mark.parametrize("seconds", [0.086, 0.2, 1.0, 30.0])
def test_no_model_is_timed_for_long(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda tokens: seconds * (1 + tokens / 60), monkeypatch)
    timed = machine.timer(2.0).time(describe, order_of(EDGES, (), 224, (8, 57)))
    assert machine.now <= max(2.4, 4 * seconds)
    assert {1, 2} <= timed.keys()
    if seconds < 0.1:
        assert {1, 2, 4, 8, 16, 32} <= timed.keys()


def test_the_first_pass_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda tokens: 1e-2, monkeypatch)
    machine.hiccup_at = 0
    timed = machine.timer(0.05).time(describe, [1, 2])
    assert timed == {1: pytest.approx(1e-2), 2: pytest.approx(1e-2)}


@pytest.mark.parametrize("at", range(1, 7))
def test_a_hiccup_is_looked_at_again(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda tokens: 0.1, monkeypatch)
    machine.hiccup_at = at
    timed = machine.timer(2.4).time(describe, [1, 2, 4, 8, 16, 32])
    assert timed == {tokens: pytest.approx(0.1) for tokens in (1, 2, 4, 8, 16, 32)}


def test_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(lambda tokens: 0.1, monkeypatch)
    timer = machine.timer(9.0, stopping=lambda: machine.now > 0.35)
    assert len(timer.time(describe, EDGES)) == 3


def test_order() -> None:
    order = order_of(EDGES, (), 32 * 7, (12, 85))
    assert order[:8] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert set(order) == set(EDGES)
    assert order.index(12) < order.index(10) < order.index(3)
    assert order_of(EDGES, (), 5, (1, 6)) == [1, 2, 4, 3, 6]  # 6: what lies at or past the most
    assert order_of(EDGES, (1, 2, 4, 6), 5, (1, 6)) == [3]
    assert order_of(EDGES, (1, 2, 4, 6), 224, (2, 9), sparing=True) == [8, 16, 32, 3]
    assert order_of(EDGES, (), 224, (1, 8))[-2:] == [96, 128]  # one row waits
    assert order_of(EDGES, EDGES, 224, (1, 8)) == []


@pytest.mark.parametrize("compiles", [True, False])
def test_kernels_that_are_compiled_are_nobody_s_time(
    compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the first pass of each number of tokens may be ten others long. With no time left to
    look again it would be kept as that number's."""
    seen: set[int] = set()

    def seconds(tokens: int) -> float:
        first = tokens not in seen
        seen.add(tokens)
        return 0.4 if first else 0.01

    machine = Machine(seconds, monkeypatch)
    timer = machine.timer(1.2)
    timer.compiles = compiles
    timed = timer.time(describe, (1, 2, 4, 8, 16))
    assert len(timed) > 2
    assert (max(timed.values()) < 0.02) is compiles
