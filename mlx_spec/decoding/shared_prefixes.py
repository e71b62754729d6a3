"""``SharedPrefixes``: what several texts begin with is computed once, and taken over by the others.

A row that is read gives its blocks to the prefix cache at the next boundary (``publish``), rows
look there just before they are fed (``take_over``), and one that begins as an earlier one does
stands back until that one's blocks can be had (``waits``).

Caches that cannot be cut are copied where rows stand: at the ends of pieces, and once a prompt
where a later turn of the same talk goes on: at its end, or where the templates of this turn and of
the next one part (``Sequence.border``)::

    piece 256     turn 1   [ 90 ]                                       copied at 90
                  turn 2   [ 90 | its answer, a question: 80 ]          reads 80, copied at 170
                  turn 3   [ 90 | 80 | .. 256 .. ]                      at 256, too
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.block_keys import TextKeys
from mlx_spec.cache.pool import KVCachePool, schedule
from mlx_spec.cache.prefix import SHARED, PrefixCache, RowSource
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
        begun: whether rows that have said something are read as others are.
    """

    def __init__(
        self,
        pool: KVCachePool,
        batching: BatchingConfig,
        size: ChunkSize,
        *,
        begun: bool = False,
    ) -> None:
        self._pool, self._size, self._begun = pool, size, begun
        self._cache = PrefixCache(batching.block_size, batching.prefix_cache_bytes)
        self._described: list[mx.array] = []  # copies that are not computed yet
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
        text = self._text(sequence)
        match = self._cache.match(text)
        if match <= seen:
            return seen
        self._pool.load(slot, 0, self._cache.read(text))
        return match

    def keeps(self, sequence: Sequence) -> bool:
        """Whether a text has a beginning that may be kept, or taken over."""
        return bool(self._keys(sequence))

    def place(self, sequence: Sequence) -> int | None:
        """Where a row that cannot be cut is to be copied for the next turn; None: nowhere."""
        begun = sequence.tokens and not self._begun
        if self._pool.sliceable or begun or not self._cache.limit:
            return None
        whole = len(sequence.prompt) - 1
        return whole if sequence.border is None else min(sequence.border, whole)

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
        and when they are done at once, since they go on before the next boundary.
        """
        if done == self._pool.sliceable:
            self._noted[sequence] = slot, seen
        elif done:
            self._noted.pop(sequence, None)
            if seen == self.place(sequence):
                text = self._text(sequence).until(seen)
                self._described += self._cache.store(text, self._pool, slot)

    def take_copies(self) -> list[mx.array]:
        """Copies to be computed, before the slots are written to."""
        copies, self._described = self._described, []
        return copies

    def must_be_kept(self, sequence: Sequence) -> bool:
        """Whether a row is at a place that is to be published before the row is read on."""
        if sequence not in self._noted or self._pool.sliceable:
            return False
        _, seen = self._noted[sequence]
        if seen % self._checkpoints and seen != self.place(sequence):
            return False
        text = self._text(sequence)
        return 0 < seen <= text.length and text.at(seen) not in self._cache

    def publish(self) -> None:
        """Keep what was noted: before any of the rows moves, and before they are fed on."""
        for sequence, (slot, seen) in self._noted.items():
            whole = seen % self._cache.block_size == 0 or seen == self.place(sequence)
            if self._pool.sliceable or whole:
                self._store(sequence, slot, seen)
        self._fresh += self._noted
        self._noted.clear()

    def keep(self, sequence: Sequence, slot: int, seen: int) -> None:
        """Keep what a row that has gone on begins with; rows that cannot be cut are past that."""
        if self._pool.sliceable:
            self._store(sequence, slot, seen)

    def keep_end(self, sequence: Sequence, slot: int, held: int) -> None:
        """Keep all of a row that cannot be cut: ``held`` tokens, the last known one perhaps too."""
        keys = self._keys(sequence)
        if not self._pool.sliceable and held // self._cache.block_size <= len(keys):
            text = TextKeys(keys, self._cache.block_size, held, sequence.known)
            schedule(self._cache.store(text, self._pool, slot))

    def _store(self, sequence: Sequence, slot: int, seen: int) -> None:
        schedule(self._cache.store(self._text(sequence).until(seen), self._pool, slot))

    def remember(self, sequence: Sequence, source: RowSource) -> int:
        """Keep what a text begins with that somebody else has read; how many tokens of it."""
        text = self._text(sequence)
        if not source.sliceable:
            self._cache.forget(text)
        schedule(self._cache.store(text, source, 0, uses=SHARED))
        return self._cache.match(text)

    def settle(self) -> None:
        """What was published is computed, or nobody waits for it."""
        self._fresh.clear()

    def _text(self, sequence: Sequence) -> TextKeys:
        """The same for beginnings of any length."""
        blocks = self._keys(sequence)
        length = sequence.length - 1 if self._cache.limit else 0
        return TextKeys(blocks, self._cache.block_size, length, sequence.known)

    def _keys(self, sequence: Sequence) -> Seq[bytes]:
        """Keys of a row's blocks, the last known token left out."""
        return sequence.block_keys(self._cache.block_size) if self._cache.limit else []
