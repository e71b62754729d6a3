"""A cache that keeps every second token, and a tiny model that asks for it.

``EverySecond`` is the model's own cache of one sequence, as mlx-lm's code would have it; what comes
out with it is the reference. ``EverySecondSlots`` stands for it here, for all rows. Importing this
file is all that it takes. Tokens and storage differ: token 2 i of a row stands at entry i, the
tokens between leave nothing behind, and one entry more takes what is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx
from mlx_lm.models.llama import Model

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.layout import register
from mlx_spec.cache.span import Span


def kept(tokens: int) -> int:
    """How many of the first tokens are kept."""
    return (tokens + 1) // 2


class EverySecond:
    """One sequence's keys and values, at even positions."""

    def __init__(self) -> None:
        self.offset = 0
        self.state: list[mx.array] = []

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        new = [part[:, :, self.offset % 2 :: 2] for part in (keys, values)]
        self.offset += keys.shape[2]
        old = self.state or [part[:, :, :0] for part in new]
        self.state = [mx.concatenate(pair, axis=2) for pair in zip(old, new, strict=True)]
        return self.state[0], self.state[1]

    def make_mask(self, N: int, **_: Any) -> mx.array:  # noqa: N803 (mlx-lm's name)
        queries = mx.arange(self.offset, self.offset + N)
        return 2 * mx.arange(kept(self.offset + N)) <= queries[:, None]


class EverySecondSlots:
    """The same for all slots: entries in a dense cache of half the length."""

    sliceable, folds = True, False
    offset: mx.array

    def __init__(self) -> None:
        self.slots = self.positions = 0
        self._entries = DenseKVCache()

    def bind(self, span: Span) -> None:
        self.span, self.offset = span, span.offset
        entries = Span(span.first, span.count, span.starts, span.width, kept(span.limit))
        # What stands at odd positions goes where nobody reads.
        even, bin_ = span.positions % 2 == 0, self._entries.positions - 1
        entries.positions = mx.where(even, span.positions // 2, bin_)
        entries.index = entries.positions[:, None, :, None]
        self._entries.bind(entries)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return self._entries.update_and_fetch(keys, values)

    def make_mask(self, N: int, **_: Any) -> mx.array:  # noqa: N803
        return 2 * mx.arange(kept(self.span.limit)) <= self.span.positions[:, None, :, None]

    def commit(self, kept: mx.array | None) -> None:
        """What is not kept is written over."""

    def resize(self, slots: int, positions: int) -> None:
        self.slots, self.positions = slots, positions
        self._entries.resize(slots, kept(positions) + 1 if positions else 0)

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        return self._entries.move(sources, slots)

    def save(self, slot: int, begin: int, end: int) -> RowState:
        return self._entries.save(slot, kept(begin), kept(end))

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        self._entries.load(slot, kept(begin), states)

    def wipe(self, slot: int, begin: int) -> None:
        self._entries.wipe(slot, kept(begin))

    @property
    def arrays(self) -> list[mx.array]:
        return self._entries.arrays

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None:
        self._entries.arrays = arrays

    @property
    def cost(self) -> RowCost:
        entry = self._entries.cost.per_token
        return RowCost(fixed=entry, per_token=entry // 2)


class EverySecondLlama(Model):  # type: ignore[misc]
    """Llama over such caches."""

    def make_cache(self) -> list[EverySecond]:
        return [EverySecond() for _ in self.layers]


register(EverySecond, lambda own: EverySecondSlots())
