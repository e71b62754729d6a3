"""The pool: slots moved when rows leave, grown without loss, restored, saved and loaded."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_spec.cache.pool import fill_holes
from mlx_spec.cache.slot_sizes import POSITION_STEP
from mlx_spec.errors import CapacityError
from tests.caches import dense_pool, filled, rows_of, same, span_of, write


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


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_saved_rows_come_back_whole_and_in_pieces(data: st.DataObject) -> None:
    """Stops a saved row that later writes change, pieces that overlap or leave a gap, and a row
    that comes back to another slot's, layer's or position's place.
    """
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    pool = filled(len(lengths), lengths)
    before = rows_of(pool, lengths)
    slot = data.draw(st.integers(0, len(lengths) - 1))
    cuts = data.draw(st.sets(st.integers(1, 9)))
    ends = [end for end in sorted(cuts) if end < lengths[slot]] + [lengths[slot]]
    states, begin = [], 0
    for end in ends:
        states.append(pool.save(slot, begin, end))
        begin = end
    assert sum(state.nbytes for state in states) == pool.cost.nbytes(lengths[slot])
    write(pool, span_of(slot, [0], lengths[slot]), 90_000)  # somebody else's
    other = data.draw(st.integers(0, len(lengths) - 1))
    apart = data.draw(st.integers(0, len(states) - 1))  # the others come by themselves
    for begin, part in ((0, states[:apart]), (([0, *ends])[apart], states[apart:])):
        pool.load(other, begin, part)
    after = rows_of(pool, [lengths[slot]] * len(lengths))
    assert same([after[other]], [before[slot]])
    others = [row for row in range(len(lengths)) if row not in (slot, other)]
    kept = rows_of(pool, lengths)
    assert same([kept[row] for row in others], [before[row] for row in others])


def test_blocks_are_what_pieces_are() -> None:
    """Stops blocks shifted against each other, and a last one that is too long."""
    pool = filled(2, [12, 9])
    blocks = pool.save_blocks(1, 2, 8, 3)
    pieces = [pool.save(1, 2, 5), pool.save(1, 5, 8)]
    for ours, theirs in zip(blocks, pieces, strict=True):
        assert all(mx.array_equal(a, b).item() for a, b in zip(ours.flat, theirs.flat, strict=True))


def test_wiping_leaves_what_stands_before() -> None:
    pool = filled(3, [5, 7, 6])
    before = rows_of(pool, [5, 3, 6])
    snapshot = pool.snapshot()
    pool.wipe(1, 3)
    assert same(rows_of(pool, [5, 3, 6]), before)
    assert not any(array[1, :, 3:].any().item() for array in pool.arrays)
    pool.restore(snapshot)
    assert all(array[1, :, 3:7].any().item() for array in pool.arrays)


def test_an_empty_pool_saves_and_loads_nothing() -> None:
    """Stops an error where a draft model has drafted nothing yet."""
    pool = dense_pool(2, 2)
    pool.acquire(1)
    pool.reserve(4)
    state = pool.save(0, 0, 3)
    assert (state.flat, state.nbytes) == ([], 0)
    pool.load(0, 0, [state])
    assert pool.arrays == []
