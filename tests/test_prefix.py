"""The prefix cache against a model of it: a list of prefixes in the order of their last use.

The K/V of a position depends on all tokens up to it, so the tests' K/V do too: a block that came
back for a wrong prefix would hold wrong numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Seq

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlx_spec.block_keys import TextKeys, block_keys
from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool, schedule
from mlx_spec.cache.prefix import PrefixCache, RowSource
from tests.caches import dense_pool, filled, row_state

LAYERS, HEADS, WIDTH = 2, 1, 2
TOKEN_BYTES = LAYERS * 2 * HEADS * WIDTH * 4
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))

Tokens = tuple[int, ...]


def fingerprint(prefix: Tokens) -> float:
    """A number that float32 holds exactly, and that every token of ``prefix`` has a part in."""
    return float(zlib.crc32(repr(prefix).encode()) % 2**20)


def kv(tokens: Tokens, begin: int, end: int) -> RowState:
    """The K/V of ``tokens`` at positions ``begin .. end - 1``."""
    values = [fingerprint(tokens[: position + 1]) for position in range(begin, end)]
    row = mx.broadcast_to(mx.array(values)[None, None, :, None], (1, HEADS, end - begin, WIDTH))
    return row_state([(row + layer, -row - layer) for layer in range(LAYERS)])


class Rows:
    """A pool of one row, in slot 3; ``reads`` says which positions were asked for."""

    cost = RowCost(per_token=TOKEN_BYTES)
    sliceable, folds = True, False

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.reads: list[tuple[int, int]] = []

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        assert slot == 3
        self.reads.append((begin, end))
        return [kv(self.tokens, start, start + size) for start in range(begin, end, size)]

    def on_the_way(self, state: RowState) -> RowState:
        return state


def keys(cache: PrefixCache, tokens: Seq[int]) -> TextKeys:
    size = cache.block_size
    return TextKeys(block_keys(tokens, size), size, len(tokens), lambda a, b: tokens[a:b])


def store(cache: PrefixCache, tokens: Seq[int], source: RowSource, slot: int) -> None:
    schedule(cache.store(keys(cache, tokens), source, slot))


def match(cache: PrefixCache, tokens: Seq[int]) -> int:
    return cache.match(keys(cache, tokens))


def read(cache: PrefixCache, tokens: Seq[int]) -> list[RowState]:
    return cache.read(keys(cache, tokens))


def keep(cache: PrefixCache, tokens: Tokens) -> list[tuple[int, int]]:
    """Store; returns the positions that were read."""
    rows = Rows(tokens)
    store(cache, tokens, rows, 3)
    return rows.reads


def same(states: list[RowState], other: RowState) -> bool:
    """Whether stretches one behind the other hold the same as one of all."""
    rows = zip(*(state.flat for state in states), strict=True)
    joined = [mx.concatenate(parts, axis=2) for parts in rows]
    return all(bool(mx.array_equal(a, b)) for a, b in zip(joined, other.flat, strict=True))


class PrefixMachine(RuleBasedStateMachine):
    """``order`` is the model: kept prefixes, whole blocks each, least recently used first."""

    @initialize(size=st.integers(1, 3), blocks=st.integers(0, 6), odd=st.integers(0, 31))
    def start(self, size: int, blocks: int, odd: int) -> None:
        self.size = size
        self.limit = blocks * size * TOKEN_BYTES + (odd if blocks else 0)
        self.cache = PrefixCache(size, self.limit)
        self.order: list[Tokens] = []
        self.reused = 0

    # Few different tokens, so that beginnings repeat.
    texts = st.lists(st.integers(0, 1), max_size=9).map(tuple)

    @rule(tokens=texts)
    def store(self, tokens: Tokens) -> None:
        most = self.limit // (self.size * TOKEN_BYTES)
        known = len(self._known(tokens))
        wanted = min(len(tokens) // self.size, most)
        # What is kept already is not read again, and what cannot be kept is not read at all.
        reads = [(known * self.size, wanted * self.size)] if known < wanted else []
        assert keep(self.cache, tokens) == reads
        for prefix in reversed(self._prefixes(tokens)[:most]):
            if prefix in self.order:
                self.order.remove(prefix)
            self.order.append(prefix)
        while len(self.order) > most:
            self.order.pop(0)

    @rule(tokens=texts)
    def read(self, tokens: Tokens) -> None:
        known = self._known(tokens)
        row = read(self.cache, tokens)
        if not known:
            assert row == []
            return
        assert same(row, kv(tokens, 0, len(known) * self.size))
        self.reused += len(known) * self.size
        for prefix in reversed(known):
            self.order.remove(prefix)
            self.order.append(prefix)

    @rule(tokens=texts)
    def match(self, tokens: Tokens) -> None:
        assert match(self.cache, tokens) == len(self._known(tokens)) * self.size

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.order = []

    def _prefixes(self, tokens: Tokens) -> list[Tokens]:
        return [tokens[:end] for end in range(self.size, len(tokens) + 1, self.size)]

    def _known(self, tokens: Tokens) -> list[Tokens]:
        known: list[Tokens] = []
        for prefix in self._prefixes(tokens):
            if prefix not in self.order:
                break
            known.append(prefix)
        return known

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert len(self.cache) == len(self.order)
        assert self.cache.nbytes == len(self.order) * self.size * TOKEN_BYTES <= self.limit
        assert self.cache.reused == self.reused

    @invariant()
    def no_block_is_kept_without_those_before_it(self) -> None:
        if hasattr(self, "cache"):
            for prefix in self.order:
                assert all(earlier in self.order for earlier in self._prefixes(prefix))


TestHistories = PrefixMachine.TestCase
TestHistories.settings = settings(QUICK, stateful_step_count=30)


@given(one=st.lists(st.integers(0, 2), max_size=8), other=st.lists(st.integers(0, 2), max_size=8))
@QUICK
def test_keys_are_equal_exactly_where_the_prefixes_are(one: list[int], other: list[int]) -> None:
    for place, (a, b) in enumerate(
        zip(block_keys(one, 2), block_keys(other, 2), strict=False), start=1
    ):
        assert (a == b) == (one[: 2 * place] == other[: 2 * place])
    assert len(block_keys(one, 2)) == len(one) // 2


def test_equal_blocks_behind_different_beginnings_have_different_keys() -> None:
    first, second = block_keys([1, 1, 5, 6], 2), block_keys([2, 2, 5, 6], 2)
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("one", "other"), [([258], [1, 2]), ([1, 0], [0, 1]), ([2**31], [2**31 + 2**32])]
)
def test_keys_depend_on_whole_tokens_in_their_order(one: list[int], other: list[int]) -> None:
    assert block_keys(one, len(one)) != block_keys(other, len(other))


def test_later_blocks_go_before_earlier_ones() -> None:
    tokens = tuple(range(8))
    cache = PrefixCache(2, 3 * 2 * TOKEN_BYTES)
    keep(cache, tokens)
    assert match(cache, tokens) == 6
    keep(cache, (90, 91))
    assert match(cache, tokens) == 4
    assert match(cache, (90, 91)) == 2


def test_reading_keeps_what_is_read() -> None:
    one, other = (1, 2), (3, 4)
    cache = PrefixCache(2, 2 * 2 * TOKEN_BYTES)
    keep(cache, one)
    keep(cache, other)
    read(cache, one)
    keep(cache, (5, 6))
    assert match(cache, one) == 2
    assert match(cache, other) == 0


def test_a_limit_of_zero_keeps_nothing_and_reads_nothing() -> None:
    cache = PrefixCache(2, 0)
    assert keep(cache, (1, 2, 3, 4)) == []
    assert match(cache, (1, 2)) == 0
    assert read(cache, (1, 2)) == []
    assert cache.nbytes == len(cache) == 0


def test_texts_share_only_their_common_beginning() -> None:
    texts = [(1, 2, 3, 4), (1, 2, 3, 9), (1, 2), (7, 2, 3, 4)]
    cache = PrefixCache(1, 10**6)
    for text in texts:
        keep(cache, text)
    for text in texts:
        kept = read(cache, text)
        assert same(kept, kv(text, 0, len(text)))
    assert len(cache) == 4 + 1 + 0 + 4
    assert cache.nbytes == 9 * TOKEN_BYTES


@pytest.mark.parametrize("blocks", [4, 40], ids=["a part of it fits", "all of it fits"])
def test_storing_holds_no_byte_more_than_the_limit(blocks: int) -> None:
    """Stops copies of a whole prompt beside the cache, and old blocks beside the new ones.

    An earlier version copied a row whole, then block by block, and evicted last: twice the
    prompt's bytes beyond the limit.
    """
    pool = dense_pool(3, 2)
    pool.acquire(2)
    pool.reserve(2048)
    heads, length, size = 4, 600, 16
    row = [(mx.ones((1, heads, length, 32)), mx.ones((1, heads, length, 32))) for _ in range(3)]
    pool.load(1, 0, [row_state(row)])
    mx.eval(pool.arrays)
    del row
    block_bytes = size * pool.cost.per_token
    assert pool.cost.per_token == 3 * 2 * heads * 32 * 4
    cache = PrefixCache(size, blocks * block_bytes)
    store(cache, range(1000, 1000 + length), pool, 1)
    mx.clear_cache()
    before, held = mx.get_active_memory(), cache.nbytes
    mx.reset_peak_memory()
    store(cache, range(length), pool, 1)
    kept = min(blocks, length // size) * block_bytes
    assert mx.get_peak_memory() - before <= cache.limit - held + 2**14
    # Each block has buffers of its own: nothing but the blocks is held.
    assert abs(mx.get_active_memory() - before - (cache.nbytes - held)) <= 2**14
    assert match(cache, range(length)) * pool.cost.per_token == kept


def spoilt(pool: KVCachePool, slot: int, position: int) -> None:
    """Make one value of the last layer no number."""
    *_, values = pool.arrays
    pool.layers[-1].arrays = [pool.layers[-1].arrays[0], values.at[slot, 0, position].add(mx.nan)]


def test_what_is_no_number_is_found_when_it_is_wanted_and_goes_with_what_follows() -> None:
    """Stops a wait when storing, and NaN that comes back with a repeated beginning."""
    tokens = list(range(20))
    pool = filled(2, [20, 20])
    spoilt(pool, 1, 9)
    cache = PrefixCache(4, 10**6)
    store(cache, tokens, pool, 1)
    assert len(cache) == 5
    assert cache.nbytes == pool.cost.nbytes(20)
    assert match(cache, tokens) == 8
    assert len(cache) == 2
    assert cache.nbytes == pool.cost.nbytes(8)
    # The same text, sound: stored behind what was left.
    store(cache, tokens, pool, 0)
    assert match(cache, tokens) == 20
    pool.load(1, 0, read(cache, tokens))
    assert mx.isfinite(pool.arrays[-1][1, :, :20]).all().item()


def test_storing_reads_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a row that leaves from waiting for the step in flight."""
    pool = filled(2, [20, 20])
    waited: list[str] = []
    for name in ("eval", "synchronize"):
        monkeypatch.setattr(mx, name, lambda *_, name=name: waited.append(name))
    cache = PrefixCache(4, 10**6)
    store(cache, range(20), pool, 1)
    pool.save(0, 0, 9)
    pool.keep([1])
    assert waited == []
    monkeypatch.undo()
    assert match(cache, range(20)) == 20
