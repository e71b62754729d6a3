"""``SharedPrefixes``: what several texts begin with is computed once, and taken over by the others.

A row that is read gives its blocks to the prefix cache at the next boundary (``publish``), rows
look there just before they are fed (``take_over``), and one that begins as an earlier one does
stands back until that one's blocks can be had (``waits``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.prefix import PrefixCache, RowSource
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.chunk_size import ChunkSize
from mlx_spec.model.pace import FEWEST
from mlx_spec.sequence import Sequence


class SharedPrefixes:
    """The beginnings of one model's rows.

    Args:
        pool: where the rows are.
        batching: how much is kept, in blocks of how many tokens.
        size: texts are cut at its pieces; where rows cannot be, they are looked at there.
    """

    def __init__(self, pool: KVCachePool, batching: BatchingConfig, size: ChunkSize) -> None:
        self._pool, self._size = pool, size
        self._cache = PrefixCache(batching.block_size, batching.prefix_cache_bytes)
        self._noted: dict[Sequence, tuple[int, int]] = {}  # slot, tokens: to be published
        # Published and perhaps not computed yet: to look at such blocks now would wait for them.
        self._fresh: list[Sequence] = []

    @property
    def _checkpoints(self) -> int:
        """Rows that cannot be cut are looked at every so many tokens."""
        return math.lcm(self._size.piece, self._cache.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self._cache.nbytes

    def order(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """By length, and behind them those that begin as an earlier one does."""
        leaders: list[Sequence] = []
        followers: list[Sequence] = []
        begun: set[bytes] = set()
        for sequence in sorted(sequences, key=lambda s: s.length):
            fresh = [key for key in self._keys(sequence) if key not in self._cache]
            (followers if begun.intersection(fresh) else leaders).append(sequence)
            begun.update(fresh)
        return leaders + followers

    def take_over(self, sequence: Sequence, slot: int, seen: int) -> int:
        """Fill a slot with what is kept beyond its ``seen`` tokens; return what it holds then."""
        keys = self._keys(sequence)
        match = self._cache.match(keys)
        if match <= seen:
            return seen
        self._pool.load(slot, 0, self._cache.read(keys))
        return match

    def waits(self, sequence: Sequence, seen: int, earlier: Iterable[Sequence]) -> bool:
        """Whether what comes next of a row is about to be published by an earlier one.

        Where it has seen something, a few tokens less are not worth a pass of its own.
        """
        size = self._cache.block_size
        if self._pool.sliceable:
            place = seen // size
            least = place + 1 if place == 0 else place + -(-FEWEST // size)
        else:
            least = (seen // self._checkpoints + 1) * self._checkpoints // size
        own = self._keys(sequence)[:least]
        if len(own) < least:
            return False
        coming = [*self._noted, *self._fresh, *earlier]
        # Equal keys of a block mean equal beginnings up to its end.
        return any(self._keys(other)[least - 1 : least] == own[-1:] for other in coming)

    def note(self, sequence: Sequence, slot: int, seen: int, *, done: bool) -> None:
        """A row has been read so far; what can be kept of it is published at the next boundary.

        Rows that can be cut are kept when they are done; others as they are between two passes,
        but not when they are done, since they have gone on by then.
        """
        if done == self._pool.sliceable:
            self._noted[sequence] = slot, seen
        elif done:
            self._noted.pop(sequence, None)

    def must_be_kept(self, sequence: Sequence) -> bool:
        """Whether a row is at a place that is to be published before the row is read on."""
        if sequence not in self._noted or self._pool.sliceable:
            return False
        _, seen = self._noted[sequence]
        here = self._keys(sequence)[seen // self._cache.block_size - 1 :][:1]
        return seen % self._checkpoints == 0 and bool(here) and here[0] not in self._cache

    def publish(self) -> None:
        """Keep what was noted: before any of the rows moves, and before they are fed on."""
        for sequence, (slot, seen) in self._noted.items():
            self._cache.store(self._keys(sequence), seen, self._pool, slot)
        self._fresh += self._noted
        self._noted.clear()

    def keep(self, sequence: Sequence, slot: int, seen: int) -> None:
        """Keep what a row that has gone on begins with; rows that cannot be cut are past that."""
        if self._pool.sliceable:
            self._cache.store(self._keys(sequence), seen, self._pool, slot)

    def remember(self, sequence: Sequence, source: RowSource) -> int:
        """Keep what a text begins with that somebody else has read; how many tokens of it."""
        keys = self._keys(sequence)
        self._cache.store(keys, sequence.length - 1, source, 0)
        return self._cache.match(keys)

    def settle(self) -> None:
        """What was published is computed, or nobody waits for it."""
        self._fresh.clear()

    def _keys(self, sequence: Sequence) -> Seq[bytes]:
        """Keys of a row's blocks, the last known token left out."""
        return sequence.block_keys(self._cache.block_size) if self._cache.limit else []
