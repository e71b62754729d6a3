"""Pools of dense caches without a model, filled with numbers that say where they were written."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.span import Span

HEADS, DIMS = 2, 4


def dense_pool(layers: int, max_slots: int) -> KVCachePool:
    """A pool with so many layers of keys and values."""
    return KVCachePool([DenseKVCache() for _ in range(layers)], max_slots)


def row_state(layers: list[tuple[mx.array, ...]]) -> RowState:
    """What a pool would have saved: keys and values, [1, H, n, D], of each layer."""
    return RowState(parts=tuple(RowState(arrays) for arrays in layers))


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
