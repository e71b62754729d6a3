"""A ring against a list: whatever the passes were, each token sees its window and nothing else.

Keys are written that say whose they are, of which position and of which writing. A plain list a row
says what a token must see; attention would see the entries that its mask lets through.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence as Seq

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.cache.chunked import ChunkedRing
from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.ring import RingKVCache
from mlx_spec.cache.span import Span
from mlx_spec.errors import CapacityError

WINDOW, SLACK = 8, 4


class Rows:
    """A pool with one ring and, of each row, what it should hold: one number a token."""

    def __init__(self, slots: int, keep: int = 0, window: int = WINDOW) -> None:
        self.window, self.keep = window, keep
        self.layer = RingKVCache(window, keep, SLACK)
        self.pool = KVCachePool([self.layer], slots)
        self.texts: list[list[int]] = [[] for _ in range(slots)]
        self.written = 0
        self.pool.acquire(slots)

    def write(
        self,
        first: int,
        counts: Seq[int],
        width: int,
        kept: Seq[int] | None = None,
        *,
        far: int = 0,
    ) -> None:
        """A pass over neighbouring rows, ``counts`` tokens of each, of which ``kept`` stay.

        ``far``: where a row that only passes by pretends to be, beyond its end.
        """
        rows = range(first, first + len(counts))
        starts = [len(self.texts[row]) for row in rows]
        starts = [s if n else s + far for s, n in zip(starts, counts, strict=True)]
        limit = max(starts) + width
        self.pool.reserve(limit)
        new = self.written + 1 + np.arange(len(counts) * width).reshape(len(counts), width)
        self.written = int(new.max())
        full = all(count == width for count in counts)
        self.pool.bind(
            Span(
                first,
                len(counts),
                mx.array(starts, mx.int32),
                width,
                limit,
                uniform=len(set(starts)) == 1,
                counts=None if full else mx.array(counts, mx.int32),
                tentative=kept is not None,
            )
        )
        self._attend(new, [self.texts[row] for row in rows], counts)
        self.layer.span.ran()
        if kept is not None:
            self.pool.commit(mx.array(kept, mx.int32))
        for place, row in enumerate(rows):
            stay = counts[place] if kept is None else kept[place]
            self.texts[row] += new[place, :stay].tolist()

    def _attend(self, new: np.ndarray, texts: list[list[int]], counts: Seq[int]) -> None:
        mask = self.layer.make_mask(new.shape[1], return_array=True)
        keys = mx.array(new[:, None, :, None].astype(np.float32))
        read, values = (np.array(part) for part in self.layer.update_and_fetch(keys, -keys))
        assert (read == -values).all()
        seen = np.broadcast_to(np.array(mask), (*new.shape[:1], 1, new.shape[1], read.shape[2]))
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            for n in range(count):
                known = [*text, *new[row, : n + 1].tolist()]
                wanted = [*known[: self.keep], *known[self.keep :][self.keep - self.window :]]
                found = read[row, 0, seen[row, 0, n], 0]
                assert sorted(found) == sorted(wanted), (row, n, found, wanted)


def play(rows: Rows, seed: int, steps: int = 40, widest: int = 25) -> None:
    rng, slots = random.Random(seed), len(rows.texts)
    for step in range(steps):
        first = rng.randrange(slots)
        count = rng.randint(1, slots - first)
        width = rng.choice([1, 1, 2, SLACK, SLACK + 1, widest])
        counts = [rng.choice([width, rng.randint(0, width)]) for _ in range(count)]
        kept = [rng.randint(min(1, n), n) for n in counts] if rng.random() < 0.7 else None
        rows.write(first, counts, width, kept, far=rng.choice([0, 7]))
        if step % 9 == 8:  # a row leaves, another takes its slot and begins anew
            last, row = slots - 1, rng.randrange(slots)
            rows.pool.keep([last if slot == row else slot for slot in range(slots)])
            rows.texts[row] = list(rows.texts[last])
            rows.texts[last] = []
        if step % 9 == 4:
            row, other = rng.randrange(slots), rng.randrange(slots)
            move(rows, row, other)


def move(rows: Rows, row: int, other: int) -> None:
    """A row is saved, and comes back in another slot."""
    length = len(rows.texts[row])
    if length:
        rows.pool.load(other, 0, [rows.pool.save(row, 0, length)])
        rows.texts[other] = list(rows.texts[row])


@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_each_token_sees_its_window(slots: int, keep: int, seed: int) -> None:
    play(Rows(slots, keep), seed)


@pytest.mark.parametrize("window", [1, 2, 16])
def test_other_windows(window: int) -> None:
    play(Rows(2, window=window), 1)


def test_a_ring_takes_no_more_than_its_window() -> None:
    rows = Rows(2)
    for _ in range(3):
        rows.write(0, [300, 250], 300)
    assert rows.pool.positions > 800
    entries = WINDOW + SLACK + 1
    assert [array.shape for array in rows.pool.arrays] == [(2, 1, entries, 1)] * 2
    assert rows.pool.cost == RowCost(capped=((entries, 8),))
    assert 2 * rows.pool.cost.nbytes(900) == rows.pool.nbytes
    rows.pool.keep([])
    rows.pool.trim()
    assert rows.pool.nbytes == 0


def test_short_slots_take_less_and_cost_the_same_a_token() -> None:
    rows = Rows(2, window=4000)
    rows.write(0, [3, 3], 3)
    assert rows.pool.arrays[0].shape[2] == rows.pool.positions == 256
    assert 2 * rows.pool.cost.nbytes(256) == rows.pool.nbytes


def test_the_entries_do_not_depend_on_the_neighbours() -> None:
    """The same text, alone and beside a long one: the same numbers at the same places."""
    held = []
    for beside in (0, 700):
        rows = Rows(2)
        rows.pool.reserve(900)
        if beside:
            rows.write(1, [beside], beside)
        rows.written = 0
        rows.write(0, [9], 9)
        for _ in range(20):
            rows.write(0, [2], 2, [1])
        held.append([np.array(array[0]) for array in rows.pool.arrays])
    for alone, beside_one in zip(*held, strict=True):
        assert (alone == beside_one).all()


def test_what_is_saved_is_the_window_in_order_of_position() -> None:
    rows = Rows(1, keep=2)
    rows.write(0, [50], 50)
    (state,) = rows.pool.save(0, 0, 50).parts
    assert state.arrays[0].reshape(-1).tolist() == rows.texts[0][:2] + rows.texts[0][-5:]
    assert state.note == 50


def test_stretches_are_put_together() -> None:
    """As the prefix cache keeps them: each what was there when the row ended with it."""
    for cuts in ((4, 12, 20), (1, 2, 3, 31), (40,)):
        rows, states, begin = Rows(2, keep=2), [], 0
        for end in cuts:
            rows.write(0, [end - begin], end - begin)
            states.append(rows.pool.save(0, begin, end))
            begin = end
        rows.write(1, [60], 60)  # somebody else was there
        rows.pool.load(1, 0, states)
        rows.texts[1] = list(rows.texts[0])
        for _ in range(9):
            rows.write(0, [3, 3], 3, [1, 2])


def test_wiping_leaves_what_the_next_token_sees() -> None:
    rows = Rows(2)
    rows.write(0, [30, 30], 30)
    rows.write(0, [4, 4], 4, [1, 1])
    layer = rows.layer
    layer.arrays = [mx.where(array == rows.written, mx.nan, array) for array in layer.arrays]
    rows.pool.wipe(1, 31)
    assert not mx.isnan(layer.arrays[0]).any()
    assert int((layer.arrays[0][1] == 0).sum()) == SLACK + 2
    rows.write(0, [2, 2], 2)


def test_a_step_that_is_undone_leaves_the_ring_as_it_was() -> None:
    rows = Rows(3)
    rows.write(0, [30, 11, 2], 30)
    for width in (3, 20):
        before = [np.array(array) for array in rows.pool.arrays]
        snapshot, texts = rows.pool.snapshot(), [list(text) for text in rows.texts]
        rows.write(0, [width, width], width, [1, 2])
        rows.pool.restore(snapshot)
        rows.texts = texts
        for array, old in zip(rows.pool.arrays, before, strict=True):
            assert (np.array(array) == old).all()
        rows.write(0, [1, 1, 1], 1)


def test_a_copy_is_a_cache_of_its_own() -> None:
    rows = Rows(1)
    rows.write(0, [5], 5)
    other = copy.copy(rows.layer)
    before = np.array(other.arrays[0])
    rows.write(0, [3], 3)
    assert (np.array(other.arrays[0]) == before).all()


def test_more_calls_of_one_pass_than_can_be_taken_back_are_refused() -> None:
    """Token by token a pass is narrow calls, which nobody could tell from passes of their own."""
    rows = Rows(1)
    rows.write(0, [30], 30)
    rows.pool.reserve(40)
    for token in range(SLACK + 1):
        rows.pool.bind(Span(0, 1, mx.array([30 + token]), 1, 31 + token, opens=token == 0))
    with pytest.raises(CapacityError, match=r"6 tokens of one pass .* 5 can be taken back"):
        rows.pool.bind(Span(0, 1, mx.array([35]), 1, 36, opens=False))


@pytest.mark.parametrize("width", [1, 3])
def test_short_texts_are_masked_as_in_a_dense_cache(width: int) -> None:
    """So that they take the fast ways of attention."""
    layer = RingKVCache(64)
    pool = KVCachePool([layer], 2)
    pool.acquire(2)
    pool.reserve(80)
    span = Span(0, 2, mx.array([5, 5]), width, 5 + width, uniform=True)
    pool.bind(span)
    for window in (None, 64, 16):
        assert layer.make_mask(width, window_size=window) == (None if width == 1 else "causal")
    assert not isinstance(layer.make_mask(width, window_size=4), str | None)
    pool.bind(Span(0, 2, mx.array([5, 3]), width, 5 + width))
    mask = layer.make_mask(width, window_size=4)
    assert layer.make_mask(width, window_size=4) is mask  # for all layers of one window
    assert not layer.span.made(mask)  # lengths would not replace it: no dense cache


@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_chunk_is_read_in_order_of_position(width: int) -> None:
    """As llama4 asks for it: from ``start_position`` to the last new token, one row a pass."""
    layer = ChunkedRing(WINDOW, slack=SLACK)
    pool = KVCachePool([layer], 2)
    pool.acquire(2)
    for start in range(0, 60, width):
        pool.reserve(start + width)
        limit = start + width
        pool.bind(Span(1, 1, mx.array([start]), width, limit, uniform=True, start=start))
        layer.maybe_trim_front()
        assert layer.start_position == max(0, start + 1 - WINDOW)
        new = mx.arange(start, limit, dtype=mx.float32)[None, None, :, None]
        keys, values = layer.update_and_fetch(new, new)
        assert keys.reshape(-1).tolist() == [*range(layer.start_position, limit)]
        assert mx.array_equal(keys, values)
    pool.bind(Span(0, 2, mx.array([3, 4]), 1, 5))
    with pytest.raises(TypeError, match="one number for several rows"):
        layer.start_position  # noqa: B018
