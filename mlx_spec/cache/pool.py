"""The slots of one model: which exist, how long they are, and how rows move between them.

``KVCachePool`` owns one ``DenseKVCache`` a layer. Running rows are contiguous from slot 0 and
newcomers take the last slots, so that a decode step and a prefill chunk are both slices. When a
row leaves, the last rows move into the holes: that copies the moved rows once and touches nothing
else. The pool knows no tokens and no sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.span import Span
from mlx_spec.errors import CapacityError
from mlx_spec.row_limit import RowLimit

POSITION_STEP = 256


RowKV: TypeAlias = list[tuple[mx.array, ...]]
"""Keys and values of a stretch of one row, per layer."""


def fill_holes(count: int, leaving: Iterable[int]) -> list[int]:
    """The order in which the rows left are contiguous and as few as possible have moved.

    Returns:
        Old row numbers by new row number.

    >>> fill_holes(5, [1, 3])
    [0, 4, 2]
    """
    gone = set(leaving)
    left = count - len(gone)
    last = iter(slot for slot in range(left, count) if slot not in gone)
    return [next(last) if slot in gone else slot for slot in range(left)]


@dataclass(frozen=True)
class PoolSnapshot:
    """The arrays of a pool at one moment, by reference; lengths live elsewhere."""

    slots: int
    capacity: int
    arrays: list[tuple[mx.array | None, mx.array | None]]


@dataclass(frozen=True)
class SlotSize:
    """What slots a caller that accounts for bytes asks for.

    Attributes:
        slots: rows that are needed.
        most_slots: rows that may be held, to spare copies.
        positions: most tokens of a row.
    """

    slots: int
    most_slots: int
    positions: int


class KVCachePool:
    """Slots for the running rows of one model.

    Args:
        layers: number of caches the model asks for.
        max_slots: most rows that can run together (``batch_size``).

    Attributes:
        limit: the same, asked at every change; a decoder puts its own here.
    """

    def __init__(self, layers: int, max_slots: int) -> None:
        self.limit = RowLimit(max_slots)
        self.slots = 0
        self.capacity = 0
        self.used = 0
        self.most_positions: int | None = None  # set by callers that account for bytes
        self.layers = [DenseKVCache(0, 0) for _ in range(layers)]

    @property
    def free_slots(self) -> int:
        """Rows that may still be taken."""
        return self.limit.rows - self.used

    def acquire(self, count: int) -> int:
        """Take ``count`` more slots at the end; return the first of them.

        Raises:
            CapacityError: more than ``limit`` would be in use.
        """
        if count > self.free_slots:
            raise CapacityError(
                f"[KVCachePool.acquire] {self.used + count} slots asked, "
                f"{self.limit.rows} exist (batch_size)"
            )
        first, self.used = self.used, self.used + count
        if self.used > self.slots:
            # Doubling keeps the copies of a slowly filling batch O(1) a row.
            self._grow(min(self.limit.rows, max(self.used, 2 * self.slots)), self.capacity)
        return first

    def reserve(self, positions: int) -> None:
        """Make every slot at least ``positions`` tokens long."""
        if positions > self.capacity:
            # Growing by half keeps the copies of a growing text O(1) a token.
            wanted = max(positions, self.capacity + self.capacity // 2)
            wanted = -(-wanted // POSITION_STEP) * POSITION_STEP
            if self.most_positions is not None:
                wanted = max(positions, min(wanted, self.most_positions))
            self._grow(self.slots, wanted)

    def _grow(self, slots: int, capacity: int) -> None:
        for layer in self.layers:
            layer.resize(slots, capacity)
            # One layer at a time, so that old and new never exist for all of them at once.
            mx.eval(layer.state)
        self.slots, self.capacity = slots, capacity

    def fit(self, size: SlotSize, needed: int) -> None:
        """Have slots of the given size, as long as needed now.

        For callers that account for bytes: never more than ``most_slots * positions`` is held, and
        not that much before it is needed. Slots double and halve, so that rows that come and go
        one by one are copied O(1) times each, and memory that nobody needs goes back.
        """
        self.most_positions = most = size.positions
        slots = self._fitting(max(size.slots, self.used), size.most_slots)
        roomy = -(-needed // POSITION_STEP) * POSITION_STEP
        positions = max(needed, min(most, max(roomy, self.capacity)))
        # A longest row that leaves makes ``most`` a little less: no reason to copy everything.
        near = most < self.capacity <= most * 5 // 4
        if near and slots * self.capacity <= size.most_slots * most:
            positions = self.capacity
        if (slots, positions) != (self.slots, self.capacity):
            self._grow(slots, positions)

    def _fitting(self, slots: int, most: int) -> int:
        """How many slots to have where ``slots`` are needed, from what there is."""
        if self.slots < slots:
            return max(slots, min(most, 2 * self.slots))
        if self.slots > 4 * slots:
            return max(slots, min(most, 2 * slots))
        return max(slots, min(most, self.slots))

    def trim(self) -> None:
        """Give all memory back while no slot is in use."""
        if self.used == 0:
            self.slots = self.capacity = 0
            self.most_positions = None
            self.layers = [DenseKVCache(0, 0) for _ in self.layers]

    def keep(self, order: Seq[int]) -> None:
        """Slot i takes over what slot ``order[i]`` holds; slots not named are given back.

        Only rows whose number changes are copied (``fill_holes`` makes an order that changes few).
        """
        self.used = len(order)
        moves = [(source, slot) for slot, source in enumerate(order) if source != slot]
        if moves:
            self._move(moves)

    def read(self, slot: int, begin: int, end: int) -> RowKV:
        """Copies of one row's K/V at positions ``begin .. end - 1``, per layer [1, H, n, D].

        Evaluated at once: a pending read would make the next write copy the whole cache.
        """
        return self.read_blocks(slot, begin, end, end - begin)[0]

    def read_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowKV]:
        """The same in blocks of ``size`` tokens, each with buffers of its own; copied once."""
        blocks = [
            [
                tuple(
                    mx.contiguous(a[slot : slot + 1, :, start : start + size]) for a in layer.state
                )
                for layer in self.layers
            ]
            for start in range(begin, end, size)
        ]
        mx.eval(blocks)
        return blocks

    def write(self, slot: int, begin: int, row: RowKV) -> None:
        """Put K/V that :meth:`read` gave, of this pool or its like, at positions ``begin ..``."""
        for layer, (keys, values) in zip(self.layers, row, strict=True):
            layer.put(slot, begin, keys, values)

    def wipe(self, slot: int, begin: int) -> None:
        """Zero what a row's slot holds from position ``begin`` on. For what is no number."""
        for layer in self.layers:
            layer.wipe(slot, begin)

    def share(self, source: int, slots: Seq[int], count: int) -> None:
        """Copy a row's first ``count`` positions to other rows, lazily: part of the next pass."""
        for layer in self.layers:
            layer.share(source, slots, count)

    def _move(self, moves: list[tuple[int, int]]) -> None:
        sources = mx.array([source for source, _ in moves])
        buffers = [
            (layer, name) for layer in self.layers if layer.state for name in ("keys", "values")
        ]
        rows = [getattr(layer, name)[sources] for layer, name in buffers]
        # Evaluated before the write: a pending read of the buffer would make the write copy it.
        mx.eval(rows)
        destinations = mx.array([destination for _, destination in moves])
        for (layer, name), moved in zip(buffers, rows, strict=True):
            buffer = getattr(layer, name)
            buffer[destinations] = moved
            setattr(layer, name, buffer)

    def set_span(self, span: Span) -> None:
        """Point every layer at the rows and positions of the next forward pass."""
        if span.limit > self.capacity:
            raise CapacityError(
                f"[KVCachePool.set_span] {span.limit} positions asked, {self.capacity} exist"
            )
        for layer in self.layers:
            layer.span = span

    def snapshot(self) -> PoolSnapshot:
        """References to the present arrays, to undo steps that were built but never launched.

        Drop it before launching: while it lives, writes cannot reuse the buffers (donation trap).
        """
        arrays = [(layer.keys, layer.values) for layer in self.layers]
        return PoolSnapshot(self.slots, self.capacity, arrays)

    def restore(self, snapshot: PoolSnapshot) -> None:
        """Take the arrays of ``snapshot`` back."""
        self.slots, self.capacity = snapshot.slots, snapshot.capacity
        for layer, (keys, values) in zip(self.layers, snapshot.arrays, strict=True):
            layer.slots, layer.capacity = snapshot.slots, snapshot.capacity
            layer.keys, layer.values = keys, values

    @property
    def state(self) -> list[mx.array]:
        """All arrays, for ``mx.eval``."""
        return [array for layer in self.layers for array in layer.state]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def token_bytes(self) -> int:
        """Bytes of one position of one slot, over all layers; 0 while nothing is held."""
        return self.nbytes // (self.slots * self.capacity) if self.nbytes else 0
