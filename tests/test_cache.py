"""One layer's slots: written where asked, read through the right mask.

``DenseKVCache`` is held against plain numpy arrays. Slots that move and grow: ``test_cache_slots``;
that nothing copies the whole cache: ``test_cache_copies``.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.span import Span
from tests.caches import DIMS, HEADS, numbers, span_of


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
