"""No step copies the cache, nor goes through all of it: MLX's memory and time are watched."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence
from tests.models import make_model

# Positions far beyond what the texts use: a copy of one buffer would tower over all else.
MANY_POSITIONS = 1 << 16


class Meter:
    """Runs steps of a decoder and says how far memory rose above what it was before them."""

    def __init__(self, decoder: SpeculativeDecoder) -> None:
        self.decoder = decoder
        mx.clear_cache()

    def rise(self, steps: int = 1) -> float:
        """Most bytes above the memory before a step, in buffers (keys or values of a layer)."""
        buffer = self.decoder.runner.pool.layers[0].arrays[0].nbytes
        most = 0
        for _ in range(steps):
            mx.synchronize()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            self.decoder.step()
            mx.synchronize()
            most = max(most, mx.get_peak_memory() - before)
        return float(most / buffer)


def running(
    rows: int, slots: int, length: int, sampled: bool, **batching: Any
) -> SpeculativeDecoder:
    """``rows`` rows in the middle of their texts, over ``slots`` slots of many positions."""
    decoder = SpeculativeDecoder(
        make_model("llama"),
        draft_model=make_model("llama", seed=3, num_hidden_layers=1) if length else None,
        speculation=SpeculationConfig(num_draft_tokens=length, adaptive=False),
        batching=BatchingConfig(batch_size=slots, **batching),
    )
    sampling = SamplingParams(max_tokens=400, temperature=0.8 if sampled else 0.0, seed=1)
    sequences = [Sequence([1 + i, 2, 3] * (i + 1), sampling) for i in range(slots)]
    decoder.add(sequences)
    decoder.step()
    decoder.step()
    decoder.runner.pool.reserve(MANY_POSITIONS)
    if length:
        decoder.drafter.runner.pool.reserve(MANY_POSITIONS)  # type: ignore[attr-defined]
    for sequence in sequences[rows:]:
        decoder.remove(sequence)
    for _ in range(4):
        decoder.step()
    return decoder


def test_the_meter_sees_a_copy() -> None:
    """Guards the guard: with a buffer's handle kept elsewhere MLX must copy, and it shows."""
    decoder = running(4, 4, 0, False)
    meter = Meter(decoder)
    handle = decoder.runner.pool.arrays[0]
    assert meter.rise() > 0.9
    del handle
    decoder.step()
    assert meter.rise() < 0.1


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [0, 3], ids=["plain", "speculating"])
@pytest.mark.parametrize(("rows", "slots"), [(1, 1), (4, 4), (3, 4), (1, 4)])
def test_no_step_copies_the_cache(rows: int, slots: int, length: int, sampled: bool) -> None:
    """Stops the donation trap: one stray reference makes every step copy the whole cache, which
    no test of the output notices. A step may need a small part of one buffer, not more.
    """
    assert Meter(running(rows, slots, length, sampled)).rise(steps=6) < 0.1


@pytest.mark.parametrize("length", [0, 3], ids=["plain", "speculating"])
def test_rows_that_end_and_join_copy_no_more_than_a_row(length: int) -> None:
    """Stops a copy of the whole cache whenever a step built ahead is dropped, or a row leaves or
    joins. Only the row that moves into a hole is copied, in every buffer of both models.
    """
    slots, buffers = 8, 6 if length else 4
    decoder = running(slots, slots, length, False)
    meter = Meter(decoder)
    for turn in range(3):
        victim = decoder.running[turn]
        victim.max_new_tokens = len(victim.tokens) + 2  # ends while a step is built ahead
        assert meter.rise(steps=5) < buffers / slots + 0.1
        assert len(decoder.running) == slots - 1
        decoder.add([Sequence([5, 6, 7], SamplingParams(max_tokens=400))])
        assert meter.rise(steps=3) < 0.1


@pytest.mark.parametrize("length", [0, 3], ids=["plain", "speculating"])
def test_chunks_launched_between_steps_copy_nothing(length: int) -> None:
    """Stops a marker that is a handle to a cache, and a chunk that holds what it described: the
    step behind it would copy every buffer. What is read of a long prompt is small beside those.
    """
    decoder = running(3, 4, length, False, prefill_interleave=16)
    meter = Meter(decoder)
    decoder.add([Sequence([5, 6, 7, 8] * 20, SamplingParams(max_tokens=400))])
    assert meter.rise(steps=9) < 0.1
    assert decoder.meter.prompt_tokens >= 80
    assert len(decoder.running) == 4


@pytest.mark.parametrize("length", [0, 3], ids=["plain", "speculating"])
def test_a_row_that_is_saved_and_comes_back_copies_itself_only(length: int) -> None:
    """Stops a save that is still pending when the next step writes: that would copy everything.
    Besides the row itself one moves into the hole, in every buffer.
    """
    slots, buffers = 8, 6 if length else 4
    decoder = running(slots, slots, length, False)
    meter = Meter(decoder)
    for turn in range(3):
        victim = decoder.running[turn]
        decoder.suspend(victim, save=True)
        assert meter.rise(steps=3) < buffers / slots + 0.1
        assert decoder.saved_bytes > 0
        decoder.add([victim])
        assert meter.rise(steps=3) < 0.1
        assert decoder.saved_bytes == 0


def test_stored_beginnings_copy_themselves_only() -> None:
    """The same for blocks that a row leaves to the prefix cache when it ends."""
    slots = 8
    decoder = running(slots, slots, 0, False, prefix_cache_bytes=2**24, block_size=2)
    meter = Meter(decoder)
    victim = decoder.running[-1]  # no row moves
    victim.max_new_tokens = len(victim.tokens) + 2
    kept = decoder.kv_usage().bytes_prefix
    assert meter.rise(steps=5) < 0.1
    assert len(decoder.running) == slots - 1
    assert decoder.kv_usage().bytes_prefix > kept


def cheapest_step(positions: int) -> float:
    """Seconds that the processor works on the cheapest of some steps, over rows and slots that
    differ. What else the machine does is not in it.
    """
    decoder = running(3, 4, 0, False)
    decoder.runner.pool.reserve(positions)
    decoder.step()
    times = []
    for _ in range(12):
        started = time.process_time()
        decoder.step()
        times.append(time.process_time() - started)
    return min(times)


def test_no_step_goes_through_the_whole_cache() -> None:
    """Stops work on all positions that needs no memory (an operation done in place), which the
    meter cannot see: with 8 times the positions such a step takes many times as long.
    """
    assert cheapest_step(8 * MANY_POSITIONS) < 3 * cheapest_step(MANY_POSITIONS)
