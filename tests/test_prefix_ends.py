"""Prefixes of rows that cannot be cut: kept where they were looked at, within any bytes."""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.prefix import PrefixCache
from tests.caches import row_state
from tests.test_prefix import Rows, Tokens, fingerprint, keys, match, read, store


class Uncut(Rows):
    """Rows that can be saved only up to where they end now: a state that was folded."""

    cost = RowCost(fixed=4)
    sliceable, folds = False, False

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        self.reads.append((begin, end))
        assert (size, end) == (end - begin, len(self.tokens))
        return [row_state([(mx.array([fingerprint(self.tokens[:end])]),)])]

    def on_the_way(self, state: RowState) -> RowState:
        return RowState()


def looked_at(cache: PrefixCache, text: Tokens, *ends: int) -> list[tuple[int, int]]:
    """Store a text where it ends now and then; returns the positions that were read."""
    reads = []
    for end in ends:
        rows = Uncut(text[:end])
        store(cache, text[:end], rows, 3)
        reads += rows.reads
    return reads


def test_rows_that_cannot_be_cut_are_kept_where_they_were_looked_at() -> None:
    """Stretches follow each other, and end anywhere; one of less than a block is not worth it."""
    text = tuple(range(12))
    cache = PrefixCache(2, 3 * 4)
    assert looked_at(cache, text, 4, 5, 9, 9, 10) == [(0, 4), (4, 9)]
    assert [match(cache, text[:end]) for end in (3, 4, 8, 9, 12)] == [0, 4, 4, 9, 9]
    assert match(cache, (*text[:4], 99, 98)) == match(cache, (*text[:8], 99, 98)) == 4
    states = read(cache, text)
    assert [state.flat[0].item() for state in states] == [
        fingerprint(text[:4]),
        fingerprint(text[:9]),
    ]


def test_of_a_text_that_grows_the_last_state_is_kept() -> None:
    """However few there is room for: the next turn goes on from there, not from the first."""
    text = tuple(range(20))
    for states in (1, 2, 3):
        cache = PrefixCache(2, states * 4)
        for end in (5, 9, 13, 17, 20):
            looked_at(cache, text, end)
            assert match(cache, text) == end
            assert cache.nbytes <= cache.limit


def test_states_in_the_middle_go_before_other_texts_do() -> None:
    text, other = tuple(range(20)), tuple(range(50, 60))
    cache = PrefixCache(2, 3 * 4)
    looked_at(cache, other, 10)
    for end in (5, 9, 13, 17):
        assert match(cache, text) == end - 4 or end == 5
        read(cache, text)
        looked_at(cache, text, end)
    assert match(cache, other) == 10
    assert [match(cache, text[:end]) for end in (9, 13, 17)] == [0, 13, 17]


def test_what_several_texts_go_on_from_stays() -> None:
    """A system prompt is in the middle of many texts, and all begin there."""
    system = tuple(range(6))
    cache = PrefixCache(2, 3 * 4)
    looked_at(cache, system, 6)
    for first in range(70, 90, 2):
        text = (*system, first, first, first)
        assert match(cache, text) == 6
        read(cache, text)
        looked_at(cache, text, 9)
    assert cache.nbytes == cache.limit


def test_texts_that_part_within_a_block_are_told_apart() -> None:
    one, other = (1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 5, 6, 8)
    cache = PrefixCache(4, 100)
    looked_at(cache, one, 7)
    assert match(cache, other) == match(cache, one[:6]) == 0
    looked_at(cache, other, 7)
    assert match(cache, (*one, 9)) == match(cache, (*other, 9)) == 7
    assert read(cache, other)[0].flat[0].item() == fingerprint(other)
    cache.forget(keys(cache, one))
    assert (match(cache, one), match(cache, other)) == (0, 7)


def test_a_beginning_that_is_kept_whole_costs_nothing_again() -> None:
    """Of a window no byte is fixed, so that no blocks cost none: a division by that was a crash."""

    class Window(Uncut):
        cost = RowCost(capped=((8, 4),))

    cache, text = PrefixCache(2, 2**10), tuple(range(4))
    for reads in ([(0, 4)], []):
        rows = Window(text)
        store(cache, text, rows, 3)
        assert rows.reads == reads
