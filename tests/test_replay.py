"""Traced passes are the described ones: same numbers, no copy of the cache, bounded in number.

The tests marked slow make real traces. MLX's CPU build compiles what a trace fuses with a C++
compiler, half a second a kernel, once a machine.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest

from mlx_spec.model.replay import Replay
from mlx_spec.model.runner import ModelRunner, Rows
from tests.models import VOCABULARY, make_model

SLOTS = 5


def make_runner(rows: int = SLOTS, positions: int = 40) -> ModelRunner:
    runner = ModelRunner(make_model("llama"), SLOTS)
    runner.pool.acquire(rows)
    runner.pool.reserve(positions)
    return runner


def rows_at(starts: list[int], width: int, first: int = 0) -> Rows:
    """Other tokens for each row and position."""
    at = mx.array(starts, mx.int32)
    tokens = (7 * at[:, None] + 5 * mx.arange(width)) % VOCABULARY
    return Rows(tokens.astype(mx.int32), at, max(starts) + width, first)


def play(runner: ModelRunner, forward: Callable[[Rows], mx.array]) -> list[list[float]]:
    """Logits of ragged passes of several shapes, over slots that are left, joined and grown."""
    found = []
    starts = [[0, 3, 1, 2, 0], [9, 4, 30, 12, 7]]
    for reserve in (40, 300):  # past a limit of 256 keys
        runner.pool.reserve(reserve)
        for rows, first in ((5, 0), (3, 0), (2, 3), (5, 0)):
            for turn in range(6):
                width = 1 + turn % 2
                own = [start + turn + (reserve - 40) for start in starts[turn // 3][:rows]]
                logits = forward(rows_at(own, width, first))
                mx.eval(logits, runner.pool.arrays)
                found.append(logits.reshape(-1).tolist())
    return found


@pytest.fixture
def described() -> Iterator[None]:
    """No trace is made: the function is called each time."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize(
    "traced",
    [
        pytest.param(True, marks=pytest.mark.slow, id="traced"),
        pytest.param(False, id="described"),
    ],
)
def test_ragged_passes_give_the_same_numbers(traced: bool, request: pytest.FixtureRequest) -> None:
    if not traced:
        request.getfixturevalue("described")
    one, other = make_runner(), make_runner()
    replay = Replay(other, after=1)
    expected, found = play(one, one.forward), play(other, replay.forward)
    assert replay.traces > 4
    for ours, theirs in zip(found, expected, strict=True):
        assert mx.allclose(mx.array(ours), mx.array(theirs), atol=1e-4)
    for ours, theirs in zip(other.pool.arrays, one.pool.arrays, strict=True):
        assert mx.allclose(ours, theirs, atol=1e-4)


def test_a_shape_is_traced_when_it_has_come_often_enough(described: None) -> None:
    runner = make_runner()
    replay = Replay(runner, after=3)
    for turn in range(8):
        replay.forward(rows_at([turn] * SLOTS, 1))
        assert replay.traces == (turn > 3)  # the first pass of all makes the slots' arrays


def test_as_many_shapes_as_may_be_are_remembered(described: None) -> None:
    runner = make_runner()
    replay = Replay(runner, after=1, most=3)
    for _ in range(3):
        for width in range(1, 7):
            replay.forward(rows_at([4] * SLOTS, width))
            assert len(replay._shapes) <= 3
    assert replay.traces == 0  # each was forgotten before it came again


@pytest.mark.slow
def test_traced_passes_write_in_place() -> None:
    runner = make_runner(positions=1 << 16)
    replay = Replay(runner, after=1)
    mx.clear_cache()
    before = mx.get_active_memory()  # the slots' arrays are made by the first pass

    def draft(begin: int) -> None:
        """Four passes in one graph, each of the token before."""
        tokens = mx.full((SLOTS, 1), 3, mx.int32)
        for step in range(4):
            starts = mx.full((SLOTS,), begin + step, mx.int32)
            logits = replay.forward(Rows(tokens, starts, begin + step + 1))
            tokens = mx.argmax(logits, axis=-1)
        mx.eval(tokens, runner.pool.arrays)

    for begin in range(4):
        draft(begin)
    assert replay.traces == 1
    mx.synchronize()
    mx.reset_peak_memory()
    draft(10)
    assert mx.get_peak_memory() - before < runner.pool.nbytes + runner.pool.arrays[0].nbytes / 2


@pytest.mark.slow
def test_traces_keep_no_slots_alive() -> None:
    runner = make_runner()
    replay = Replay(runner, after=0)
    for turn in range(3):
        mx.eval(replay.forward(rows_at([turn] * SLOTS, 1)))
    assert replay.traces == 1
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(runner)
        del runner, replay
        assert alive() is None
    finally:
        gc.enable()
