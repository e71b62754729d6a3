"""K/V of repeated beginnings, kept in immutable blocks and found by their tokens.

A block is ``block_size`` tokens; its key is a hash over its own tokens and the key of the block
before it, so equal keys mean equal prefixes. Blocks are copies: rows come and go without touching
them. Least recently used ones go first, and of one prefix the later blocks before the earlier,
so what is left of it can still be found.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlx_spec.cache.pool import RowKV


@dataclass(frozen=True)
class _Block:
    row: RowKV
    nbytes: int


class BlockSource(Protocol):
    """Rows whose K/V can be copied; ``KVCachePool`` is one."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K/V, over all layers."""
        ...

    def read_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowKV]:
        """Copies of a row's K/V at positions ``begin .. end - 1``, ``size`` tokens each."""
        ...


class PrefixCache:
    """Blocks of one model's K/V.

    Args:
        block_size: tokens a block.
        limit: most bytes kept; 0 keeps nothing.

    Attributes:
        nbytes: bytes kept.
        reused: tokens that did not have to be computed again, over all time.
        evicted: blocks given up.
    """

    def __init__(self, block_size: int, limit: int) -> None:
        self.block_size = block_size
        self.limit = limit
        self.nbytes = 0
        self.reused = 0
        self.evicted = 0
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def keys(self, tokens: Seq[int]) -> list[bytes]:
        """One key for each whole block of ``tokens``."""
        keys: list[bytes] = []
        key = b""
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            block = array("q", tokens[end - self.block_size : end]).tobytes()
            key = hashlib.blake2b(key + block, digest_size=16).digest()
            keys.append(key)
        return keys

    def match(self, tokens: Seq[int]) -> int:
        """How many tokens from the first on are kept, a multiple of the block size."""
        return self.block_size * len(self._known(tokens))

    def read(self, tokens: Seq[int]) -> RowKV | None:
        """K/V of the longest kept beginning of ``tokens``, per layer [1, H, n, D]."""
        known = self._known(tokens)
        if not known:
            return None
        self._touch(known)
        self.reused += self.block_size * len(known)
        rows = [self._blocks[key].row for key in known]
        return [
            tuple(mx.concatenate(list(parts), axis=2) for parts in zip(*layers, strict=True))
            for layers in zip(*rows, strict=True)
        ]

    def store(self, tokens: Seq[int], source: BlockSource, slot: int) -> None:
        """Keep the whole blocks of ``tokens`` that are not kept yet, as many as ``limit`` allows.

        Old blocks go before new ones are copied, and each is copied once, so that never more than
        ``limit`` bytes are held.

        Args:
            tokens: the tokens in the row's cache, from position 0.
            source, slot: where the row is.
        """
        size = self.block_size
        if self.limit == 0 or len(tokens) < size:
            return
        keys = self.keys(tokens)[: self.limit // (size * source.token_bytes)]
        have = sum(key in self._blocks for key in keys)  # the first ones: later ones go first
        self._touch(keys)
        self._make_room((len(keys) - have) * size * source.token_bytes)
        if have < len(keys):
            blocks = source.read_blocks(slot, have * size, len(keys) * size, size)
            for key, block in zip(keys[have:], blocks[: _sound(blocks)], strict=False):
                self._add(key, block)
            self._touch(keys)

    def _touch(self, keys: Seq[bytes]) -> None:
        """Note a use; of the later blocks first, so that they go first."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def _make_room(self, nbytes: int) -> None:
        """Let the least recently used blocks go until ``nbytes`` fit."""
        while self.nbytes + nbytes > self.limit:
            _, oldest = self._blocks.popitem(last=False)
            self.nbytes -= oldest.nbytes
            self.evicted += 1

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.nbytes = 0

    def _known(self, tokens: Seq[int]) -> list[bytes]:
        known = []
        if self._blocks:
            for key in self.keys(tokens):
                if key not in self._blocks:
                    break
                known.append(key)
        return known

    def _add(self, key: bytes, row: RowKV) -> None:
        nbytes = sum(part.nbytes for layer in row for part in layer)
        self._blocks[key] = _Block(row, nbytes)
        self.nbytes += nbytes


def _sound(blocks: Seq[RowKV]) -> int:
    """How many of the first blocks hold numbers: what comes before NaN in a pass is spoilt too.

    Whatever a layer cannot bear, the last one shows.
    """
    # By the reach of their values: that makes no array as large as a block.
    last = [block[-1][-1] for block in blocks]
    spans = mx.stack([values.max() - values.min() for values in last])
    sound: Any = mx.isfinite(spans).tolist()
    return sound.index(False) if False in sound else len(blocks)
