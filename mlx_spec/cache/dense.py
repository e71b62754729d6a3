"""One layer's keys and values for all running rows, each row at its own position.

``DenseKVCache`` stands behind mlx-lm's cache protocol (``offset``, ``update_and_fetch``,
``make_mask``), so that any full-attention model of mlx-lm runs on it unmodified. A *slot* is a
row of the pool and belongs to one sequence. Writing N new tokens costs O(N) bytes, and rolling
back is not an operation at all: what lies at or past a row's length is garbage that nobody reads
and that the next write covers. Nothing here is ever zeroed, shifted or re-aligned::

    slot 0  k k k k k k . . . .     k  token of the row      a pass of width 3 writes [start, start
    slot 1  k k k|n n n|. . . .     n  of the present pass   + 3) of each row; if one is kept, the
    slot 2  k k k k k|n n n|. .     .  garbage               others are garbage from then on

Donation trap: while anything else refers to ``keys`` or ``values`` (a user's handle, an
unevaluated graph), MLX cannot write in place and copies the whole buffer. Never hand them out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.span import Span


class DenseKVCache:
    """Keys and values of one layer, [slots, kv_heads, positions, head_dim].

    Arrays are made at the first write, when head counts, head dims and dtype are known from the
    model itself.

    Args:
        in_steps: read keys in steps of positions that come again (``Span.in_steps``).
    """

    sliceable, folds = True, False
    kind = "full attention"
    offset: mx.array | int
    span: Span

    def __init__(self, slots: int = 0, positions: int = 0, *, in_steps: bool = False) -> None:
        self.slots = slots
        self.positions = positions
        self._in_steps = in_steps
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def bind(self, span: Span) -> None:
        """The rows and positions of the next pass."""
        if self._in_steps:
            positions = self.positions
            span = span.once(("in steps", positions), lambda: span.in_steps(positions))
        self.span = span
        self.offset = span.offset

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """The attention mask of this pass: None, ``"causal"`` or per-row booleans."""
        if self.span.uniform and window_size is None and not return_array:
            return None if N == 1 else "causal"
        return self.span.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [rows, H, N, D] at each row's position; return what attention reads."""
        self.write(keys, values)
        return self.keys_and_values()

    def write(self, keys: mx.array, values: mx.array) -> None:
        """Put new tokens at their positions; they take the buffer's type."""
        span = self.span
        own_keys, own_values = self.prepare(keys, values)
        if span.count == self.slots and not span.stretch:
            self.keys = mx.put_along_axis(own_keys, span.index, keys, 2)
            self.values = mx.put_along_axis(own_values, span.index, values, 2)
        else:
            self.keys, self.values = self._scatter(keys, values)

    def keys_and_values(self) -> tuple[Any, Any]:
        """What attention reads in this pass, for layers that have no keys and values of their own.

        Made anew on each call: whoever kept it would make the next write copy everything.
        """
        span, (keys, values) = self.span, self.arrays
        if span.count != self.slots:
            rows = slice(span.first, span.first + span.count)
            keys, values = keys[rows], values[rows]
        if span.limit == self.positions:
            return keys, values
        read = span.read
        return keys[read], values[read]

    @property
    def state(self) -> Any:
        """The same, as models of older versions of mlx-lm ask for it."""
        return self.keys_and_values()

    def prepare(self, *like: mx.array) -> list[mx.array]:
        """The arrays of all slots, made now if there are none, for what looks like this."""
        if not self.arrays:
            self.arrays = [self._buffer(part) for part in like]
        return self.arrays

    def _scatter(self, *new: mx.array) -> tuple[mx.array, ...]:
        """The arrays with new tokens in some of all slots, or at the same positions of all."""
        span = self.span
        # Item assignment rebinds the handle it is called on; a snapshot may hold that one.
        written = tuple(map(copy.copy, self.arrays))
        for buffer, part in zip(written, new, strict=True):
            if span.stretch:
                slots = slice(span.first, span.first + span.count)
                buffer[slots, :, span.limit - span.width : span.limit] = part
            else:
                buffer[span.rows, :, span.positions] = part.transpose(0, 2, 1, 3)
        return written

    def _buffer(self, like: mx.array) -> mx.array:
        """The array of all slots."""
        _, heads, _, dims = like.shape
        return mx.zeros((self.slots, heads, self.positions, dims), like.dtype)

    def commit(self, kept: mx.array | None) -> None:
        """Nothing to do: what is not kept is garbage behind the row's length."""

    def resize(self, slots: int, positions: int) -> None:
        """Make room for more slots or positions, or fewer. Copies what is kept: call it rarely."""
        most = (slice(slots), slice(None), slice(positions))
        pads = [(0, max(0, slots - self.slots)), (0, 0)]
        pads += [(0, max(0, positions - self.positions)), (0, 0)]
        kept = self.arrays if slots and positions else []
        self.arrays = [mx.contiguous(mx.pad(buffer[most], pads)) for buffer in kept]
        self.slots, self.positions = slots, positions

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        """Copy rows to other slots, lazily; return the copies."""
        rows = [buffer[sources] for buffer in self.arrays]
        self._put(slots, slice(None), rows)
        return rows

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """Copies [1, H, end - begin, D] of one row's keys and values, lazily."""
        parts = [buffer[slot : slot + 1, :, begin:end] for buffer in self.arrays]
        return RowState(tuple(map(mx.contiguous, parts)))

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        """Write saved stretches of a row at ``begin ..``, lazily."""
        parts = [state.arrays for state in states if state.arrays]
        if not parts:
            return
        new = [
            both[0] if len(both) == 1 else mx.concatenate(both, axis=2)
            for both in map(list, zip(*parts, strict=True))
        ]
        self.prepare(*new)
        where = slice(begin, begin + new[0].shape[2])
        self._put(slice(slot, slot + 1), where, new)

    def wipe(self, slot: int, begin: int) -> None:
        """Zero one row from position ``begin`` on, lazily."""
        self._put(slice(slot, slot + 1), slice(begin, None), [0] * len(self.arrays))

    def _put(self, slots: slice | mx.array, where: slice, new: Seq[mx.array | int]) -> None:
        """Write at positions ``where`` of some slots, outside any pass."""
        written = [copy.copy(buffer) for buffer in self.arrays]  # a snapshot may hold the handles
        for buffer, part in zip(written, new, strict=True):
            buffer[slots, :, where] = part
        self.arrays = written

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values, once there are any."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None:
        self.keys, self.values = arrays or (None, None)

    @property
    def cost(self) -> RowCost:
        """Linear in tokens."""
        positions = self.slots * self.positions
        return RowCost(per_token=sum(a.nbytes for a in self.arrays) // max(1, positions))
