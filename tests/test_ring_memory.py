"""What rings take: their window however long the text, and no copies of it on the way."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.ring import RingKVCache
from mlx_spec.cache.ring_places import SLACK
from mlx_spec.cache.span import Span
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.tiny_sizes import WINDOW

SLOTS, HEADS, DIMS = 4, 4, 64
TALL = 1000  # a window next to which what a pass needs besides is small


def test_the_bytes_of_a_ring_stay_flat_while_the_text_grows() -> None:
    decoder = SpeculativeDecoder(
        build("gemma3_text"), batching=BatchingConfig(batch_size=2, prefill_step_size=256)
    )
    held: list[dict[type, int]] = []
    for length in (40, 300, 900):
        decoder.add([Sequence([1, 2, 3] * (length // 3), SamplingParams(max_tokens=2))] * 1)
        while decoder.busy:
            decoder.step()
        layers = decoder.runner.pool.layers
        held.append({type(layer): sum(a.nbytes for a in layer.arrays) for layer in layers})
    rings, dense = ([sizes[kind] for sizes in held] for kind in (RingKVCache, DenseKVCache))
    assert rings[0] == rings[1] == rings[2]
    assert dense[0] < dense[1] < dense[2]
    each = decoder.runner.cost.per_token
    assert rings[0] == decoder.runner.pool.slots * (WINDOW + SLACK + 1) * each
    assert decoder.kv_usage().bytes_held == rings[2] + dense[2]


def test_the_byte_budget_knows_it() -> None:
    """As many rows as fit, by what the slots will really take."""
    runner = ModelRunner(build("gemma3_text"), 8)
    budget = KVBudget(runner.cost, limit=2**20)
    for tokens in (16, 48, 4000):
        runner.pool.acquire(3)
        runner.pool.reserve(tokens)
        rows = mx.zeros((3, tokens), mx.int32)
        runner.pool.most_positions = tokens
        where = Span(0, 3, mx.zeros(3, mx.int32), 1, 1, uniform=True)
        runner.pool.bind(where)
        runner.model(rows[:, :1], cache=runner.pool.caches)
        positions, slots = runner.pool.positions, runner.pool.slots
        assert runner.pool.nbytes == budget.slot_bytes([positions] * slots)
        runner.pool.keep([])
        runner.pool.trim()
    # A window more costs the full layer's half only.
    assert budget.nbytes([9000]) - budget.nbytes([8000]) == 1008 * runner.cost.per_token


def tall() -> tuple[KVCachePool, RingKVCache]:
    """Rows past the end of a long ring."""
    layer = RingKVCache(TALL)
    pool = KVCachePool([layer], SLOTS)
    pool.acquire(SLOTS)
    pool.reserve(4 * TALL)
    write(pool, 0, [0] * SLOTS, 2 * TALL)
    return pool, layer


def write(pool: KVCachePool, first: int, starts: list[int], width: int, **more: Any) -> float:
    """A pass; the most bytes above what there was before, in buffers (keys, or values)."""
    (layer,) = pool.layers
    mx.clear_cache()
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    new = mx.ones((len(starts), HEADS, width, DIMS))
    span = Span(first, len(starts), mx.array(starts), width, max(starts) + width, **more)
    pool.bind(span)
    for part in layer.update_and_fetch(new, new):
        part.sum().item()
    span.ran()
    mx.eval(layer.arrays)
    mx.synchronize()
    return float((mx.get_peak_memory() - before) / layer.arrays[0].nbytes)


def test_a_step_copies_nothing_of_a_ring() -> None:
    pool, layer = tall()
    write(pool, 0, [2 * TALL] * SLOTS, 3)
    assert write(pool, 0, [2 * TALL + 3] * SLOTS, 3) < 0.1
    assert write(pool, 0, [2 * TALL + 6] * SLOTS, 3, counts=mx.array([1, 2, 3, 3])) < 0.1
    assert write(pool, 1, [2 * TALL + 9] * 2, 2) < 0.1
    handle = layer.arrays[0]  # guards the guard
    assert write(pool, 0, [2 * TALL + 9] * SLOTS, 3) > 0.9
    del handle


def test_a_chunk_writes_a_ring_once() -> None:
    """What it reads and what it writes are the same entries, so that MLX cannot write in place:
    keys and values are there twice for a moment, and no longer."""
    pool, _ = tall()
    width = TALL // 10
    write(pool, 3, [2 * TALL], width)
    assert write(pool, 3, [2 * TALL + width], width) < 3
    assert write(pool, 0, [2 * TALL + width] * SLOTS, 1) < 0.1


def test_a_longer_text_copies_nothing() -> None:
    pool, layer = tall()
    before = layer.arrays
    pool.reserve(20 * TALL)
    assert all(new is old for new, old in zip(layer.arrays, before, strict=True))


@pytest.mark.parametrize("width", [3, 100])
def test_what_a_wide_pass_noted_goes_with_it(width: int) -> None:
    """Stops old entries from being held, and copied, while nobody can want them any more."""
    pool, layer = tall()
    write(pool, 0, [2 * TALL] * SLOTS, width)
    assert not layer.span.scratch
    write(pool, 0, [2 * TALL + width] * SLOTS, width, tentative=True)
    assert bool(layer.span.scratch) == (width > SLACK)
