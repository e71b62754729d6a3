"""What rows hold of repeated beginnings, kept in immutable stretches and found by their tokens.

A block is ``block_size`` tokens; its key is a hash over its own tokens and the key of the block
before it, so equal keys mean equal prefixes. Where the caches can be cut anywhere a stretch is one
block; else it is what lies between two places where a row was looked at, several blocks, and
stands under the key of the last one. Stretches are copies: rows come and go without touching them.
Least recently used ones go first, and of one prefix the later before the earlier, so what is left
of it can still be found.

Storing does not wait for the device. Whether what was stored are numbers is computed along with the
copies and looked at when they are first wanted: what is none goes then, with what follows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol, cast

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import schedule


class RowSource(Protocol):
    """Rows of which copies can be had; ``KVCachePool`` is one."""

    @property
    def cost(self) -> RowCost:
        """Bytes of a row, or of a stretch of one."""
        ...

    @property
    def sliceable(self) -> bool:
        """Whether any stretch of a row can be saved, or only what ends where the row ends now."""
        ...

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        """Copies of a row's tokens ``begin .. end - 1``, ``size`` tokens each."""
        ...


class _Check:
    """Whether stretches that were stored together hold numbers, computed and not yet looked at.

    What comes before NaN in a pass is spoilt too, and whatever a layer cannot bear, the last one
    shows.
    """

    def __init__(self, states: Seq[RowState]) -> None:
        # By the reach of their values: that makes no array as large as a stretch.
        self._finite = mx.isfinite(mx.stack([_reach(state) for state in states]))
        self._flags: list[bool] | None = None
        schedule([self._finite])

    def __getitem__(self, place: int) -> bool:
        if self._flags is None:
            self._flags = cast("list[bool]", self._finite.tolist())
        return self._flags[place]


def _reach(state: RowState) -> mx.array:
    """The difference of the largest and the smallest value in its last array of any."""
    last = next((array for array in reversed(state.flat) if array.size), mx.zeros(1))
    return (last.max() - last.min()).astype(mx.float32)


@dataclass(frozen=True)
class _Stretch:
    """Blocks ``begin .. end - 1``; ``check[place]`` says whether they are sound."""

    state: RowState
    nbytes: int
    begin: int
    end: int
    check: _Check
    place: int


class PrefixCache:
    """What one model's rows hold of repeated beginnings.

    Args:
        block_size: tokens a block.
        limit: most bytes kept; 0 keeps nothing.

    Attributes:
        nbytes: bytes kept.
        reused: tokens that did not have to be computed again, over all time.
    """

    def __init__(self, block_size: int, limit: int) -> None:
        self.block_size = block_size
        self.limit = limit
        self.nbytes = 0
        self.reused = 0
        self._kept: OrderedDict[bytes, _Stretch] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def match(self, keys: Seq[bytes]) -> int:
        """How many tokens of a text with these keys are kept, a multiple of the block size."""
        return self.block_size * self._blocks(self._known(keys))

    def read(self, keys: Seq[bytes]) -> list[RowState]:
        """The longest kept beginning of such a text, stretch by stretch, to load at position 0."""
        known = self._known(keys)
        self._touch(known)
        self.reused += self.block_size * self._blocks(known)
        return [self._kept[key].state for key in known]

    def store(self, keys: Seq[bytes], length: int, source: RowSource, slot: int) -> None:
        """Keep the whole blocks of a row that are not kept yet, as many as ``limit`` allows.

        Where rows cannot be cut anywhere, what ends behind the last token, if a block does.
        Old ones go before new ones are copied, and each is copied once, so that never more than
        ``limit`` bytes are held.

        Args:
            keys: of the row's blocks.
            length: tokens in the row's cache, from position 0.
            source, slot: where the row is.
        """
        size = self.block_size
        if self.limit == 0 or length < size or source.cost == RowCost():
            return
        keys = keys[: length // size]
        chain = self._chain(keys)
        have = self._blocks(chain)
        self._touch(chain)
        if have == len(keys) or (length % size and not source.sliceable):
            return
        blocks = 1 if source.sliceable else len(keys) - have  # in each new stretch
        wanted = keys[have + blocks - 1 :: blocks]
        each = source.cost.nbytes(blocks * size)
        wanted = wanted[: (self.limit - sum(self._kept[key].nbytes for key in chain)) // each]
        self._make_room(len(wanted) * each)
        if wanted:
            end = (have + blocks * len(wanted)) * size
            states = source.save_blocks(slot, have * size, end, blocks * size)
            check = _Check(states)
            for place, (key, state) in enumerate(zip(wanted, states, strict=True)):
                begin = have + place * blocks
                stretch = _Stretch(state, state.nbytes, begin, begin + blocks, check, place)
                self._add(key, stretch)
            self._touch([*chain, *wanted])

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.nbytes = 0

    def _touch(self, keys: Seq[bytes]) -> None:
        """Note a use; of the later ones first, so that they go first."""
        for key in reversed(keys):
            self._kept.move_to_end(key)

    def _make_room(self, nbytes: int) -> None:
        """Let the least recently used ones go until ``nbytes`` fit."""
        while self.nbytes + nbytes > self.limit:
            self._drop(next(iter(self._kept)))

    def _chain(self, keys: Seq[bytes]) -> list[bytes]:
        """Of the stretches kept under ``keys`` those that follow each other from the start."""
        chain: list[bytes] = []
        blocks = 0
        for end, key in enumerate(keys if self._kept else (), start=1):
            if key in self._kept and self._kept[key].begin == blocks:
                chain.append(key)
                blocks = end
        return chain

    def _blocks(self, chain: Seq[bytes]) -> int:
        """How many blocks a chain is."""
        return self._kept[chain[-1]].end if chain else 0

    def _known(self, keys: Seq[bytes]) -> list[bytes]:
        """The sound stretches that a text with these keys begins with.

        What is not sound is dropped, with what follows it.
        """
        chain = self._chain(keys)
        kept = [self._kept[key] for key in chain]
        sound = next((i for i, s in enumerate(kept) if not s.check[s.place]), len(kept))
        for key in chain[sound:]:
            self._drop(key)
        return chain[:sound]

    def _add(self, key: bytes, stretch: _Stretch) -> None:
        if key in self._kept:  # behind what was given up
            self._drop(key)
        self._kept[key] = stretch
        self.nbytes += stretch.nbytes

    def _drop(self, key: bytes) -> None:
        self.nbytes -= self._kept.pop(key).nbytes
