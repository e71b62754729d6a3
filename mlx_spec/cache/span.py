"""``Span``: what one forward pass reads and writes, over the rows that take part in it.

All layers share one, so that positions, masks and indices are made once a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import mlx.core as mx

from mlx_spec.cache.device import SHORT
from mlx_spec.cache.slot_sizes import whole_steps

T = TypeVar("T")


@dataclass
class Span:
    """What one forward pass reads and writes; shared by the caches of all layers.

    Attributes:
        first, count: the contiguous slots ``first .. first + count - 1``.
        starts: [count] int32, position of each row's first new token.
        width: new tokens per row, N (right-padded: a row with fewer writes garbage past its end).
        counts: [count] int32, new tokens of each row that are valid; None where all N are. Caches
            whose rollback is assigning a length need not look at it.
        limit: keys to read; at least every row's start + width.
        uniform: all starts equal ``limit - width``, so no per-row mask is needed.
        grouped: masks get an axis more, for models that keep the query heads of one key head on an
            axis of their own.
        start: of one row alone, the number that ``starts`` holds, where models are to get that.
        tentative: guesses are among the tokens, so that ``commit`` follows.
        opens: it is the first call of its pass, and not one more of the same rows.
        since: no row starts before that position.
        scratch: what caches note of the pass: while the model runs, and where a commit follows
            until then. They would hold old arrays otherwise, which MLX then copies (donation trap).
    """

    first: int
    count: int
    starts: mx.array
    width: int
    limit: int
    uniform: bool = False
    grouped: bool = False
    counts: mx.array | None = None
    start: int | None = None
    tentative: bool = False
    opens: bool = True
    since: int = 0
    scratch: dict[Hashable, Any] = field(default_factory=dict)
    _masks: dict[int | None, mx.array] = field(default_factory=dict)
    _within: tuple[mx.array, mx.array] | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # [count, N]: the position of every new token; and the same as all layers index with it.
        self.positions = self.starts[:, None] + mx.arange(self.width, dtype=mx.int32)
        self.index = self.positions[:, None, :, None]
        # What attention reads of [rows, heads, positions, dims].
        self.read = (slice(None), slice(None), slice(self.limit))

    @property
    def offset(self) -> mx.array | int:
        """What models see of a cache as its ``offset``."""
        return self.starts if self.start is None else self.start

    @property
    def stretch(self) -> bool:
        """Whether it is a prompt's: what is written is a block, which is copied as such."""
        return self.uniform and self.width > 1

    @cached_property
    def lengths(self) -> mx.array:
        """[count] int32: keys of every row with the new ones, for attention by length."""
        return self.starts + self.width

    @cached_property
    def rows(self) -> mx.array:
        """[count, 1]: the slots, for writing to some of all."""
        return mx.arange(self.first, self.first + self.count)[:, None]

    def up_to(self, position: int) -> Span:
        """The same for caches of what stands before ``position``, and an entry at it for all that
        does not."""
        limit = min(self.limit, position)
        where = replace(self, limit=limit, uniform=False, _masks={}, _made={})
        where.positions = mx.minimum(where.positions, position)
        where.index = where.positions[:, None, :, None]
        return where

    def in_steps(self, positions: int) -> Span:
        """The same for a device that plans attention by its shape: as many keys as come again for
        many passes, at most ``positions``, and a mask that hides the rest.

        One query a row is not planned, and a prompt's stretch comes once: those stay as they are.
        """
        if not 1 < self.width <= SHORT:
            return self
        limit = min(whole_steps(self.limit), positions)
        return replace(self, limit=limit, uniform=False, _masks={}, _made={}, _within=None)

    def ran(self) -> None:
        """The model has described the pass."""
        if not self.tentative:
            self.scratch.clear()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, made by the first layer that asks for ``key`` in this pass."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def mask(self, window_size: int | None) -> mx.array:
        """[count, 1, N, limit] booleans: query n of a row sees keys up to its own position.

        With ``grouped`` [count, 1, 1, N, limit].
        """
        if window_size not in self._masks:
            keys = mx.arange(self.limit, dtype=mx.int32)
            queries = self.positions[:, None, :, None]
            mask = keys <= queries
            if window_size is not None:
                mask = mask & (keys > queries - window_size)
            self._masks[window_size] = mask[:, :, None] if self.grouped else mask
        return self._masks[window_size]

    def within(self, counts: mx.array) -> mx.array:
        """[count, N] booleans: each row's first ``counts`` [count] tokens."""
        if self._within is None or self._within[0] is not counts:
            self._within = counts, mx.arange(self.width) < counts[:, None]
        return self._within[1]

    def made(self, mask: mx.array | str | None) -> bool:
        """Whether a mask is one that a cache gave for this pass, so that lengths can replace it."""
        if mask is None:
            return self.uniform and self.width == 1
        if isinstance(mask, str):
            return self.uniform and mask == "causal"
        return any(mask is own for own in self._masks.values())

    def size_of(self, mask: mx.array | str | None) -> int | None:
        """The window size that a mask of this pass was made for."""
        sizes = [size for size, own in self._masks.items() if own is mask]
        return sizes[0] if sizes else None
