"""K/V memory: what is held grows with few copies, is told in numbers, and goes back."""

from __future__ import annotations

import gc
from collections.abc import Callable

import mlx.core as mx
import pytest

from mlx_spec.batching.engine import Engine
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.slot_sizes import SlotSize
from mlx_spec.cache.usage import KVUsage, measure
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.sequence import Sequence
from tests.caches import dense_pool, row_state
from tests.models import make_model
from tests.scenario import noisy_draft, target

# Of the tiny llama: layers, keys and values, heads, dims, float32.
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
SMALL_CHANGE = 2**14


@pytest.fixture(autouse=True)
def _no_garbage() -> None:
    """What earlier tests left would go in the middle of one that measures."""
    gc.collect()


def fill(pool: KVCachePool, heads: int = 2, dims: int = 16) -> None:
    """Make the pool's arrays."""
    pool.load(0, 0, [row_state([(mx.ones((1, heads, 1, dims)),) * 2 for _ in pool.layers])])
    mx.eval(pool.arrays)


def test_slots_that_nobody_needs_go_back() -> None:
    before = mx.get_active_memory()
    pool = dense_pool(2, 32)
    pool.fit(SlotSize(32, 32, 256), needed=256)
    pool.acquire(32)
    fill(pool)
    assert pool.free_slots == 0
    held = mx.get_active_memory() - before
    assert held == pytest.approx(32 * 256 * pool.cost.per_token, abs=SMALL_CHANGE)
    pool.keep(range(8))
    pool.fit(SlotSize(8, 32, 256), needed=256)
    assert (pool.slots, pool.free_slots) == (32, 24)  # half of them may be needed again soon
    pool.keep([3, 5])
    pool.fit(SlotSize(2, 32, 256), needed=256)
    assert pool.slots == 4
    left = mx.get_active_memory() - before
    assert left == pytest.approx(4 * 256 * pool.cost.per_token, abs=SMALL_CHANGE)
    pool.fit(SlotSize(2, 32, 64), needed=64)  # the long ones have gone
    assert pool.nbytes == 4 * 64 * pool.cost.per_token
    pool.keep([])
    pool.trim()
    assert mx.get_active_memory() - before <= SMALL_CHANGE
    assert (pool.slots, pool.nbytes, pool.cost.per_token) == (0, 0, 0)


def count_copies(patch: pytest.MonkeyPatch) -> list[int]:
    """Slots that each resize copies, in one layer."""
    copies: list[int] = []
    resize = DenseKVCache.resize

    def counted(self: DenseKVCache, slots: int, positions: int) -> None:
        if self.keys is not None:
            copies.append(min(self.slots, slots))
        resize(self, slots, positions)

    patch.setattr(DenseKVCache, "resize", counted)
    return copies


def test_rows_that_come_and_go_one_by_one_are_copied_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stops a copy of everything at each arrival: 32 arrivals would copy 496 slots."""
    pool = dense_pool(1, 32)
    copies = count_copies(monkeypatch)
    for rows in [*range(1, 33), *range(32, 0, -1), *range(1, 33)]:
        pool.keep(range(min(pool.used, rows)))
        pool.fit(SlotSize(rows, 32, 64), needed=64)
        pool.acquire(rows - pool.used)
        fill(pool)
        assert rows <= pool.slots <= 4 * rows
    assert sum(copies) < 3 * 32


@pytest.mark.parametrize("most", [5, 8])
def test_room_to_spare_stays_within_the_limit(most: int) -> None:
    pool = dense_pool(1, 32)
    for rows in (1, 2, 3, 4, 5):
        pool.fit(SlotSize(rows, most, 64), needed=64)
        pool.acquire(1)
        assert rows <= pool.slots <= most
    assert pool.slots == most  # 1, 2, 4, and then what twice as many would exceed
    pool.fit(SlotSize(5, 5, 64), needed=64)
    assert pool.slots == 5  # the room is wanted for something else


def test_usage_counts_slots_blocks_and_bytes() -> None:
    pool = dense_pool(2, 4)
    pool.fit(SlotSize(3, 4, 40), needed=40)
    pool.acquire(2)
    fill(pool)
    usage = measure([pool], [17, 16], block_size=16)
    per_token = 2 * 2 * 2 * 16 * 4
    assert usage == KVUsage(
        slots=3,
        slots_used=2,
        positions=40,
        tokens=33,
        blocks=3 * 3,
        blocks_used=2 + 1,
        bytes_held=3 * 40 * per_token,
        bytes_used=33 * per_token,
    )
    assert usage.waste == 1 - 33 / 120
    assert KVUsage().waste == 0.0
    assert KVUsage(bytes_held=5, bytes_saved=6, bytes_prefix=7).total == 18


def run_until(engine: Engine, done: Callable[[], bool]) -> None:
    for _ in range(1000):
        if done():
            return
        engine.step(hurry=True)
    raise AssertionError("the engine makes no progress")


def test_an_engine_tells_its_memory_and_gives_it_back() -> None:
    """Seven short requests and a long one: when only that is left, most memory goes back."""
    models = target("llama"), noisy_draft("llama")
    batching = BatchingConfig(batch_size=8, block_size=16)
    speculation = SpeculationConfig(num_draft_tokens=3, adaptive=False)
    engine = Engine(
        models[0], None, draft_model=models[1], batching=batching, speculation=speculation
    )
    mx.synchronize()
    before = mx.get_active_memory()
    requests = [
        Sequence([1 + i] * 20, SamplingParams(max_tokens=300 if i == 4 else 20)) for i in range(8)
    ]
    engine.submit(*requests)
    run_until(engine, lambda: len(requests[0].tokens) > 5)
    full = engine.kv_usage()
    assert (full.slots, full.slots_used) == (8, 8)
    assert full.tokens >= 8 * 20
    assert full.blocks_used >= 8 * 2
    assert full.bytes_used <= full.bytes_held <= full.bytes_limit
    run_until(engine, lambda: len(engine.scheduler.running) == 1)
    engine.step()
    engine.step()
    alone = engine.kv_usage()
    assert alone.slots_used == 1
    assert alone.bytes_held <= full.bytes_held / 4
    # The row's tokens and their logits' margin, not much more: memory was really given back.
    assert mx.get_active_memory() - before <= alone.bytes_held + 2**17
    run_until(engine, lambda: requests[4].ended)
    assert engine.kv_usage().bytes_held == 0
    assert mx.get_active_memory() - before <= 2**16


def test_a_generator_shows_its_memory() -> None:
    batching = BatchingConfig(batch_size=2, batch_timeout=0.0)
    with BatchedMLXGenerator(target("llama"), None, batching=batching) as generator:
        assert "K/V slots" not in str(generator.stats())
        stream = generator.submit([1, 2, 3], SamplingParams(max_tokens=200))
        for _ in range(20):
            next(stream)
        kv = generator.stats().kv
        assert kv.slots_used == 1
        assert kv.bytes_used == kv.tokens * TOKEN_BYTES > 0
        assert generator.stats().cache_bytes >= kv.bytes_held
        assert "K/V slots: 1 of 1 used" in str(generator.stats())
        stream.cancel()
        generator.drain(10)
        assert generator.stats().kv.bytes_held == 0


def test_growing_between_steps_holds_one_layer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a snapshot for undoing a step from keeping the old arrays of all layers alive while
    they grow: old and new side by side would be 1.67 times the limit, or more.
    """
    growths: list[tuple[int, int, int]] = []  # bytes before and after, and the most meanwhile
    grow = KVCachePool._grow

    def watched(pool: KVCachePool, slots: int, positions: int) -> None:
        mx.synchronize()
        old, active = pool.nbytes, mx.get_active_memory()
        mx.reset_peak_memory()
        grow(pool, slots, positions)
        if old:
            growths.append((old, pool.nbytes, old + mx.get_peak_memory() - active))

    monkeypatch.setattr(KVCachePool, "_grow", watched)
    model = make_model("llama", num_hidden_layers=8)
    speculation = SpeculationConfig(num_draft_tokens=3, adaptive=False)
    engine = Engine(model, None, draft_model=noisy_draft("llama"), speculation=speculation)
    for row in range(8):
        engine.submit(Sequence([1 + row] * 240, SamplingParams(max_tokens=60)))
    while engine.busy:
        engine.step(hurry=True)
    grown = [sizes for sizes in growths if sizes[1] > sizes[0]]
    assert len(grown) == 2  # target and draft
    for (old, new, most), layers in zip(grown, (8, 2), strict=True):
        assert most <= new + old / layers + SMALL_CHANGE
    for old, new, most in growths:  # what the last rows give back too
        assert most <= max(old, new) + min(old, new) / 2 + SMALL_CHANGE


def test_a_block_less_is_no_reason_to_copy_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest row leaves and the next longest may come to hold a little less."""
    pool = dense_pool(1, 8)
    pool.fit(SlotSize(4, 4, 512), needed=512)
    pool.acquire(4)
    fill(pool)
    copies = count_copies(monkeypatch)
    pool.keep([0, 1, 2])
    pool.fit(SlotSize(3, 5, 496), needed=400)
    assert copies == []
    pool.fit(SlotSize(3, 4, 496), needed=400)  # no longer within the bytes that are allowed
    assert copies == [4]
    assert pool.slots * pool.positions <= 4 * 496


@pytest.mark.parametrize(("slots", "positions"), [(8, 64), (4, 512), (8, 512), (2, 64)], ids=str)
def test_another_size_holds_one_layer_twice(slots: int, positions: int) -> None:
    """Stops ``fit`` from holding old and new of all layers, whichever way it goes."""
    layers = 8
    pool = dense_pool(layers, 8)
    pool.fit(SlotSize(4, 4, 256), needed=256)
    pool.acquire(2)
    fill(pool)
    mx.synchronize()
    old, active = pool.nbytes, mx.get_active_memory()
    mx.reset_peak_memory()
    pool.fit(SlotSize(slots, slots, positions), needed=positions)
    assert pool.nbytes != old
    most = old + mx.get_peak_memory() - active
    assert most <= max(old, pool.nbytes) + max(old, pool.nbytes) / layers + SMALL_CHANGE
