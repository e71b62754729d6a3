"""One layer's keys and values for all running rows, each row at its own position.

``DenseKVCache`` stands behind mlx-lm's cache protocol (``offset``, ``update_and_fetch``,
``make_mask``), so that any full-attention model of mlx-lm runs on it unmodified. A *slot* is a
row of the pool and belongs to one sequence. Writing N new tokens costs O(N) bytes, and rolling
back is not an operation at all: what lies at or past a row's length is garbage that nobody reads
and that the next write covers. Nothing here is ever zeroed, shifted or re-aligned.

Donation trap: while anything else refers to ``keys`` or ``values`` (a user's handle, an
unevaluated graph), MLX cannot write in place and copies the whole buffer. Never hand them out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.cache.span import Span


class DenseKVCache:
    """Keys and values of one layer, [slots, kv_heads, positions, head_dim].

    The pool sets ``span`` before each forward pass. Arrays are made at the first write, when
    head counts, head dims and dtype are known from the model itself.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.span: Span | None = None

    @property
    def offset(self) -> mx.array:
        """[rows] int32: positions of the first new tokens, as mlx-lm's models ask for rope."""
        assert self.span is not None
        return self.span.starts

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """The attention mask of this pass: None, ``"causal"`` or per-row booleans."""
        assert self.span is not None
        if self.span.uniform and window_size is None and not return_array:
            return None if N == 1 else "causal"
        return self.span.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [rows, H, N, D] at each row's position; return what attention reads."""
        assert self.span is not None
        self.keys = self._write(self.keys, keys)
        self.values = self._write(self.values, values)
        return self._read(self.keys), self._read(self.values)

    def put(self, slot: int, begin: int, keys: mx.array, values: mx.array) -> None:
        """Write [1, H, n, D] of one row at ``begin ..``, outside any forward pass."""
        end = begin + keys.shape[2]
        self.keys = self._buffer(self.keys, keys)
        self.values = self._buffer(self.values, values)
        self.keys[slot : slot + 1, :, begin:end] = keys
        self.values[slot : slot + 1, :, begin:end] = values

    def wipe(self, slot: int, begin: int) -> None:
        """Zero one row from position ``begin`` on, outside any forward pass."""
        for buffer in self.state:
            buffer[slot : slot + 1, :, begin:] = 0

    def share(self, source: int, slots: Seq[int], count: int) -> None:
        """Copy the first ``count`` positions of one row to other rows, lazily."""
        if self.keys is not None and self.values is not None:
            self.keys = _share(self.keys, source, slots, count)
            self.values = _share(self.values, source, slots, count)

    def _buffer(self, buffer: mx.array | None, like: mx.array) -> mx.array:
        """The array of all slots, made when its shape is first known."""
        if buffer is not None:
            return buffer
        _, heads, _, dims = like.shape
        return mx.zeros((self.slots, heads, self.capacity, dims), like.dtype)

    def _write(self, buffer: mx.array | None, new: mx.array) -> mx.array:
        span = self.span
        assert span is not None
        buffer = self._buffer(buffer, new)
        new = new.astype(buffer.dtype)
        if span.count == self.slots:
            return mx.put_along_axis(buffer, span.index, new, axis=2)
        rows = mx.arange(span.first, span.first + span.count)[:, None]
        # Item assignment rebinds the handle it is called on; a snapshot may hold that one.
        written = copy.copy(buffer)
        written[rows, :, span.positions] = new.transpose(0, 2, 1, 3)
        return written

    def _read(self, buffer: mx.array) -> mx.array:
        span = self.span
        assert span is not None
        if span.count != self.slots:
            buffer = buffer[span.first : span.first + span.count]
        return buffer if span.limit == self.capacity else buffer[:, :, : span.limit]

    def resize(self, slots: int, capacity: int) -> None:
        """Make room for more slots or positions, or fewer. Copies what is kept: call it rarely."""
        if self.keys is not None and self.values is not None:
            pads = [
                (0, max(0, slots - self.slots)),
                (0, 0),
                (0, max(0, capacity - self.capacity)),
                (0, 0),
            ]
            self.keys = mx.contiguous(mx.pad(self.keys[:slots, :, :capacity], pads))
            self.values = mx.contiguous(mx.pad(self.values[:slots, :, :capacity], pads))
        self.slots, self.capacity = slots, capacity

    @property
    def state(self) -> tuple[mx.array, ...]:
        """The arrays, for ``mx.eval``."""
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.state)

    def is_trimmable(self) -> bool:
        """Rolling back is assigning a length."""
        return True

    def __bool__(self) -> bool:
        # mlx-lm's helpers ask ``if cache``: a cache is there even while it is empty.
        return True


def _share(buffer: mx.array, source: int, slots: Seq[int], count: int) -> mx.array:
    # A copy of its own: a view of the buffer would make the write copy all of it.
    row = mx.contiguous(buffer[source : source + 1, :, :count])
    written = copy.copy(buffer)  # a snapshot may hold the handle
    written[mx.array(list(slots)), :, :count] = row
    return written
