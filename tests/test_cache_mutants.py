"""Planted bugs of caches, each of which rows that come, go and return must notice.

More of them, of positions, masks and moves, are among ``test_mutants``.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import cache

import mlx.core as mx
import pytest

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool, PoolSnapshot
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
from tests.caches import filled, rows_of, same, span_of, write
from tests.fakes import RaggedPolicy
from tests.preemption import run_with_a_preemption
from tests.scenario import mlx_lm_greedy, noisy_draft, target

Patch = pytest.MonkeyPatch


def wrong_rows(rows: int = 3) -> int:
    """Rows that differ from what the target says alone, among five in ``rows`` slots."""
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=ModelDrafter(ModelRunner(noisy_draft("llama"), rows)),
        policy=RaggedPolicy(),
        batching=BatchingConfig(batch_size=rows, block_size=8, prefix_cache_bytes=2**20),
    )
    made = run_with_a_preemption(decoder)
    return sum(row.tokens != expected(tuple(row.prompt), len(row.tokens)) for row in made)


@cache
def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    """What mlx-lm itself says, which uses none of our caches."""
    return mlx_lm_greedy(target("llama"), prompt, count)


def loaded_one_too_late(patch: Patch) -> None:
    """A saved row comes back one position behind where it was."""
    right = DenseKVCache.load

    def wrong(self: DenseKVCache, slot: int, begin: int, states: Seq[RowState]) -> None:
        right(self, slot, begin + 1, states)

    patch.setattr(DenseKVCache, "load", wrong)


def loaded_to_the_first_slot(patch: Patch) -> None:
    """A saved row comes back to somebody else's slot."""
    right = DenseKVCache.load

    def wrong(self: DenseKVCache, slot: int, begin: int, states: Seq[RowState]) -> None:
        right(self, 0, begin, states)

    patch.setattr(DenseKVCache, "load", wrong)


def saved_without_its_end(patch: Patch) -> None:
    """The last token of a saved stretch is another one's."""
    right = DenseKVCache.save

    def wrong(self: DenseKVCache, slot: int, begin: int, end: int) -> RowState:
        parts = [right(self, slot, begin, end - 1), right(self, slot, 0, 1)]
        both = zip(*(part.arrays for part in parts), strict=True)
        return RowState(tuple(mx.concatenate(list(pair), axis=2) for pair in both))

    patch.setattr(DenseKVCache, "save", wrong)


def one_piece_for_all(patch: Patch) -> None:
    """Of a beginning in several blocks the first is taken for each. (Their order would not show:
    rotations are in the keys, and attention asks for no order.)"""
    right = DenseKVCache.load

    def wrong(self: DenseKVCache, slot: int, begin: int, states: Seq[RowState]) -> None:
        right(self, slot, begin, [states[0]] * len(states))

    patch.setattr(DenseKVCache, "load", wrong)


def moved_in_the_first_layer_only(patch: Patch) -> None:
    """Rows take over a slot in one layer and leave the others behind."""
    right = KVCachePool._move

    def wrong(self: KVCachePool, moves: list[tuple[int, int]]) -> None:
        kept, self.layers = self.layers, self.layers[:1]
        right(self, moves)
        self.layers = kept

    patch.setattr(KVCachePool, "_move", wrong)


PLANTED = [
    loaded_one_too_late,
    loaded_to_the_first_slot,
    saved_without_its_end,
    one_piece_for_all,
    moved_in_the_first_layer_only,
]


def test_without_a_bug_nothing_is_wrong() -> None:
    assert wrong_rows() == 0


@pytest.mark.parametrize("plant", PLANTED, ids=[plant.__name__ for plant in PLANTED])
def test_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert wrong_rows() > 0


def undone() -> bool:
    """Whether a pool holds what it did, after a step that was never launched."""
    pool = filled(3, [4, 2, 6])
    before = rows_of(pool, [4, 2, 6])
    snapshot = pool.snapshot()
    write(pool, span_of(0, [1, 1, 1], 3), 70_000)
    pool.restore(snapshot)
    return same(rows_of(pool, [4, 2, 6]), before)


def test_arrays_restored_from_another_layer_are_noticed(monkeypatch: Patch) -> None:
    right = KVCachePool.restore

    def wrong(self: KVCachePool, snapshot: PoolSnapshot) -> None:
        arrays = [*snapshot.arrays[1:], snapshot.arrays[0]]
        right(self, PoolSnapshot(snapshot.slots, snapshot.positions, arrays))

    assert undone()
    monkeypatch.setattr(KVCachePool, "restore", wrong)
    assert not undone()
    assert wrong_rows() > 0


def test_a_snapshot_that_item_assignment_changes_is_noticed(monkeypatch: Patch) -> None:
    """``copy.copy`` of a handle, left out: what a write rebinds is what the snapshot holds."""
    monkeypatch.setattr("mlx_spec.cache.dense.copy.copy", lambda buffer: buffer)
    pool = filled(3, [4, 2, 6])
    before = rows_of(pool, [4, 2, 6])
    snapshot = pool.snapshot()
    write(pool, span_of(0, [1, 1], 3), 70_000)
    pool.restore(snapshot)
    assert not same(rows_of(pool, [4, 2, 6]), before)
