"""The slots: written where asked, moved when rows leave, grown without loss, and never copied.

``DenseKVCache`` and ``KVCachePool`` are held against plain numpy arrays; the last tests watch MLX's
memory to see that no step makes a copy of the cache.
"""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.pool import POSITION_STEP, KVCachePool, fill_holes
from mlx_spec.cache.span import Span
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import CapacityError
from mlx_spec.sequence import Sequence
from tests.caches import dense_pool
from tests.models import make_model

HEADS, DIMS = 2, 4


def span_of(first: int, starts: list[int], width: int, limit: int | None = None) -> Span:
    limit = max(starts) + width if limit is None else limit
    return Span(first, len(starts), mx.array(starts, mx.int32), width, limit)


def numbers(rows: int, width: int, start: int = 0, dims: int = DIMS) -> np.ndarray:
    """[rows, heads, width, dims] of different whole numbers."""
    size = rows * HEADS * width * dims
    return np.arange(start, start + size, dtype=np.float32).reshape(rows, HEADS, width, dims)


def write(pool: KVCachePool, where: Span, start: int) -> list[tuple[mx.array, mx.array]]:
    """Write numbers to all layers; each layer's, and its values, are others."""
    pool.bind(where)
    read = []
    for i, layer in enumerate(pool.layers):
        keys = numbers(where.count, where.width, start + 10_000 * i)
        read.append(layer.update_and_fetch(mx.array(keys), mx.array(-keys)))
    return read


def filled(slots: int, lengths: list[int], layers: int = 2) -> KVCachePool:
    """A pool with as many rows as lengths, each with its own content up to its length."""
    pool = dense_pool(layers, slots)
    pool.acquire(len(lengths))
    pool.reserve(max(lengths))
    for slot, length in enumerate(lengths):
        write(pool, span_of(slot, [0], length), 1000 * (slot + 1))
    return pool


def rows_of(pool: KVCachePool, lengths: list[int]) -> list[list[np.ndarray]]:
    """What every layer holds of each row, up to the row's length."""
    return [
        [np.array(array[slot, :, :length]) for layer in pool.layers for array in layer.arrays]
        for slot, length in enumerate(lengths)
    ]


def same(ours: list[list[np.ndarray]], theirs: list[list[np.ndarray]]) -> bool:
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all((x == y).all() for x, y in zip(a, b, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    )


# --- writing ----------------------------------------------------------------------------------


@st.composite
def writes(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, list[int], int]]]:
    """Slots, capacity, and writes (first slot, start of each row, width) to whole or part."""
    slots, capacity = draw(st.integers(1, 5)), draw(st.integers(3, 12))
    todo = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.sampled_from([slots, draw(st.integers(1, slots))]))
        first = draw(st.integers(0, slots - count))
        width = draw(st.integers(1, 3))
        top = capacity - width
        starts = draw(st.lists(st.integers(0, top), min_size=count, max_size=count))
        todo.append((first, starts, width))
    return slots, capacity, todo


@given(case=writes(), data=st.data())
@example(case=(3, 8, [(0, [0, 5, 2], 3), (1, [4, 4], 2), (2, [7], 1)]), data=None)
@settings(max_examples=60, deadline=None)
def test_each_row_is_written_at_its_own_position(
    case: tuple[int, int, list[tuple[int, list[int], int]]], data: Any
) -> None:
    """Stops a shared offset, rows shifted by the window's first slot, and transposed heads, on
    both write paths: all slots, and a part of them.
    """
    slots, capacity, todo = case
    layer = DenseKVCache(slots, capacity)
    model = np.zeros((2, slots, HEADS, capacity, DIMS), np.float32)
    for turn, (first, starts, width) in enumerate(todo):
        last = max(starts) + width
        limit = capacity if data is None else data.draw(st.integers(last, capacity))
        layer.bind(span_of(first, starts, width, limit))
        new = numbers(len(starts), width, 1 + 1000 * turn)
        keys, values = layer.update_and_fetch(mx.array(new), mx.array(-new))
        for row, start in enumerate(starts):
            model[0, first + row, :, start : start + width] = new[row]
            model[1, first + row, :, start : start + width] = -new[row]
        rows = slice(first, first + len(starts))
        assert keys.shape == values.shape == (len(starts), HEADS, limit, DIMS)
        assert (np.array(keys) == model[0, rows, :, :limit]).all()
        assert (np.array(values) == model[1, rows, :, :limit]).all()
    assert (np.array(layer.keys) == model[0]).all()
    assert (np.array(layer.values) == model[1]).all()


@pytest.mark.parametrize("count", [3, 2], ids=["all slots", "some"])
def test_keys_and_values_may_differ_in_size_and_type(count: int) -> None:
    """Stops a buffer allocated like the keys for values of another head size (MLA), and a cache
    that changes its type when a layer hands over another one.
    """
    layer = DenseKVCache(3, 6)
    for turn, dtype in enumerate((mx.float16, mx.float32)):
        layer.bind(span_of(0, [turn, 2, 4][:count], 1))
        keys = mx.array(numbers(count, 1, 5, dims=4)).astype(dtype)
        values = mx.array(numbers(count, 1, 7, dims=6)).astype(dtype)
        layer.update_and_fetch(keys, values)
        assert layer.keys is not None
        assert layer.values is not None
        assert (layer.keys.shape, layer.values.shape) == ((3, 2, 6, 4), (3, 2, 6, 6))
        assert layer.keys.dtype == layer.values.dtype == mx.float16
        assert (layer.keys[1, :, 2] == keys[1, :, 0].astype(mx.float16)).all().item()
        assert (layer.values[1, :, 2] == values[1, :, 0].astype(mx.float16)).all().item()


@given(
    starts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    width=st.integers(1, 4),
    more=st.integers(0, 3),
    size=st.one_of(st.none(), st.integers(1, 6)),
)
@settings(max_examples=60, deadline=None)
def test_mask_shows_each_query_its_own_past(
    starts: list[int], width: int, more: int, size: int | None
) -> None:
    """Stops a query that sees past itself, misses itself, or sees another row's past."""
    limit = max(starts) + width + more
    layer = DenseKVCache(len(starts), limit)
    layer.bind(span_of(0, starts, width, limit))
    mask = np.array(layer.make_mask(width, window_size=size))
    assert mask.shape == (len(starts), 1, width, limit)
    for row, start in enumerate(starts):
        for n in range(width):
            seen = [
                key <= start + n and (size is None or key > start + n - size)
                for key in range(limit)
            ]
            assert mask[row, 0, n].tolist() == seen


def test_uniform_rows_need_no_mask_array() -> None:
    """Stops a [B, 1, N, limit] mask where mlx has a fast path; and none where one is needed."""
    layer = DenseKVCache(2, 9)
    layer.bind(Span(0, 2, mx.array([4, 4]), 3, 7, uniform=True))
    assert layer.make_mask(3) == "causal"
    assert isinstance(layer.make_mask(3, return_array=True), mx.array)
    assert isinstance(layer.make_mask(3, window_size=2), mx.array)
    layer.bind(Span(0, 2, mx.array([4, 4]), 1, 5, uniform=True))
    assert layer.make_mask(1) is None


# --- slots ------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_fill_holes_leaves_the_others_contiguous(data: st.DataObject) -> None:
    """Stops a row lost, doubled or moved without need when several leave at once."""
    count = data.draw(st.integers(0, 12))
    leaving = data.draw(st.lists(st.integers(0, max(count - 1, 0)), unique=True, max_size=count))
    order = fill_holes(count, leaving)
    left = count - len(leaving)
    assert sorted(order) == sorted(set(range(count)) - set(leaving))
    moves = [(source, slot) for slot, source in enumerate(order) if source != slot]
    assert len(moves) <= len(leaving)
    # Only rows past the new end move.
    assert all(destination < left <= source for source, destination in moves)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    leaving=st.sets(st.integers(0, 5)),
    more=st.integers(0, 2),
)
@example(lengths=[2, 3, 1], leaving={1}, more=0)
@settings(max_examples=40, deadline=None)
def test_kept_rows_take_their_content_along(
    lengths: list[int], leaving: set[int], more: int
) -> None:
    """Stops a slot that is filled in name only, in some layers only, or with keys only."""
    leaving = {slot for slot in leaving if slot < len(lengths)}
    pool = filled(len(lengths) + more, lengths)
    before = rows_of(pool, lengths)
    order = fill_holes(len(lengths), leaving)
    pool.keep(order)
    assert pool.used == len(lengths) - len(leaving)
    after = rows_of(pool, [lengths[slot] for slot in order])
    assert same(after, [before[slot] for slot in order])


def test_slots_and_positions_grow_without_loss() -> None:
    """Stops content lost or shifted when newcomers or long texts make the arrays grow."""
    pool = dense_pool(2, 7)
    lengths = [3, 5]
    assert pool.acquire(2) == 0
    pool.reserve(5)
    assert pool.positions == POSITION_STEP
    for slot, length in enumerate(lengths):
        write(pool, span_of(slot, [0], length), 1000 * (slot + 1))
    before = rows_of(pool, lengths)
    assert pool.acquire(1) == 2
    assert pool.slots == 4  # doubled
    pool.reserve(POSITION_STEP + 1)
    assert pool.positions == 2 * POSITION_STEP
    assert pool.acquire(4) == 3
    assert pool.slots == 7  # never more than asked for at most
    assert same(rows_of(pool, lengths), before)
    write(pool, span_of(0, [3, 5, 0, 0, 0, 0, 300], 2), 50_000)
    assert same(rows_of(pool, lengths), before)
    assert pool.arrays[0][6, 0, 300].any().item()


def test_reserving_less_changes_nothing() -> None:
    """Stops a copy in every step: growing is for what does not fit."""
    pool = filled(2, [4, 3])
    pool.reserve(POSITION_STEP)
    arrays = pool.arrays
    pool.reserve(POSITION_STEP)
    pool.reserve(1)
    assert all(a is b for a, b in zip(pool.arrays, arrays, strict=True))
    grown = pool.positions
    pool.reserve(grown + 1)
    pool.reserve(grown + 2)
    assert pool.positions == POSITION_STEP * (1 + grown // POSITION_STEP)


def test_more_rows_than_slots_are_refused_in_words() -> None:
    """Stops an index error deep in MLX, and slots taken by a refused request."""
    pool = dense_pool(1, 3)
    pool.acquire(2)
    with pytest.raises(CapacityError, match=r"\[KVCachePool.acquire\] 4 slots asked, 3 exist"):
        pool.acquire(2)
    assert pool.used == 2
    assert pool.acquire(1) == 2


def test_positions_past_the_capacity_are_refused_in_words() -> None:
    """Stops a write past the end, which MLX would clip or wrap without a word."""
    pool = dense_pool(1, 3)
    pool.acquire(1)
    pool.reserve(10)
    message = rf"\[KVCachePool.bind\] {POSITION_STEP + 1} positions asked, {POSITION_STEP}"
    with pytest.raises(CapacityError, match=message):
        pool.bind(span_of(0, [POSITION_STEP], 1))
    pool.bind(span_of(0, [POSITION_STEP - 1], 1))


@pytest.mark.parametrize("rows", [3, 2], ids=["all slots", "some"])
@pytest.mark.parametrize("growing", [False, True])
def test_restore_undoes_steps_that_were_never_launched(rows: int, growing: bool) -> None:
    """Stops a dropped step from staying in the cache, by either write path (item assignment
    changes the very handle that a snapshot holds), also when the arrays grew in between.
    """
    lengths = [4, 2, 6]
    pool = filled(5 if rows < 3 else 3, lengths)
    assert pool.slots == 3
    pool.limit.rows = 5
    before, sizes = rows_of(pool, lengths), (pool.slots, pool.positions)
    snapshot = pool.snapshot()
    write(pool, span_of(0, [1, 1, 1][:rows], 3), 70_000)
    if growing:
        pool.reserve(pool.positions + 1)
        pool.acquire(1)
        write(pool, span_of(0, [0, 0, 0][:rows], 2), 80_000)
    pool.restore(snapshot)
    assert (pool.slots, pool.positions) == sizes
    assert all((layer.slots, layer.positions) == sizes for layer in pool.layers)
    assert same(rows_of(pool, lengths), before)
    read = write(pool, span_of(0, [4, 2, 6][:rows], 1), 90_000)
    assert read[0][0].shape[0] == rows
    assert same(rows_of(pool, lengths), before)


def test_restore_before_anything_was_written() -> None:
    """Stops arrays that survive the snapshot of an empty pool."""
    pool = dense_pool(2, 2)
    snapshot = pool.snapshot()
    pool.acquire(2)
    pool.reserve(3)
    write(pool, span_of(0, [0, 0], 2), 1)
    pool.restore(snapshot)
    assert pool.arrays == []
    assert pool.nbytes == 0


# --- no step copies the cache -----------------------------------------------------------------

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


def running(rows: int, slots: int, length: int, sampled: bool) -> SpeculativeDecoder:
    """``rows`` rows in the middle of their texts, over ``slots`` slots of many positions."""
    decoder = SpeculativeDecoder(
        make_model("llama"),
        draft_model=make_model("llama", seed=3, num_hidden_layers=1) if length else None,
        speculation=SpeculationConfig(num_draft_tokens=length, adaptive=False),
        batching=BatchingConfig(batch_size=slots),
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
