"""Pools of dense caches without a model, and rows for them."""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool


def dense_pool(layers: int, max_slots: int) -> KVCachePool:
    """A pool with so many layers of keys and values."""
    return KVCachePool([DenseKVCache() for _ in range(layers)], max_slots)


def row_state(layers: list[tuple[mx.array, ...]]) -> RowState:
    """What a pool would have saved: keys and values, [1, H, n, D], of each layer."""
    return RowState(parts=tuple(RowState(arrays) for arrays in layers))


def dense(pool: KVCachePool, layer: int = 0) -> DenseKVCache:
    """One of the pool's layers, known to be dense."""
    found = pool.layers[layer]
    assert isinstance(found, DenseKVCache)
    return found
