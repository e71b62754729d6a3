"""The slots of one model: which exist, how long they are, and how rows move between them.

``KVCachePool`` owns slots, their order and sizes, and is a loop over one ``LayerCache`` a layer.
Running rows are contiguous from slot 0 and newcomers take the last slots, so that a decode step and
a prefill chunk are both slices. When a row leaves, the last rows move into the holes: that copies
the moved rows once and touches nothing else. The pool knows no tokens, no sequences, and not what
its layers hold.

Nothing here waits for the device but growing. What is read of a row (saved, moved) is scheduled at
once: a read that was left pending would make the next write copy the whole cache.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import LayerCache, RowState
from mlx_spec.cache.several import OwnCaches, leaves, with_leaves
from mlx_spec.cache.slot_sizes import SlotSize, fitted, grown
from mlx_spec.cache.span import Span
from mlx_spec.errors import CapacityError
from mlx_spec.row_limit import RowLimit


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
    positions: int
    arrays: list[list[mx.array]]


class KVCachePool:
    """Slots for the running rows of one model.

    Args:
        caches: the model's caches, as ``layout.plan`` makes them.
        max_slots: most rows that can run together (``batch_size``).

    Attributes:
        caches: what the model gets.
        layers: the same without lists in it: all that is asked of caches is asked of these.
        limit: the same, asked at every change; a decoder puts its own here.
        slots, positions: rows, and tokens of each, that there is memory for.
        used: slots that rows hold, the first ones.
    """

    def __init__(self, caches: Seq[OwnCaches], max_slots: int) -> None:
        self.limit = RowLimit(max_slots)
        self.slots = 0
        self.positions = 0
        self.used = 0
        self.most_positions: int | None = None  # set by callers that account for bytes
        self.caches = list(caches)
        self.layers = [layer for cache in caches for layer in leaves(cache)]
        self._cost: RowCost | None = None  # once the layers have arrays; asked at every admission

    def attach(self, layers: Seq[LayerCache]) -> None:
        """Have more layers than the model gets, behind its own; asked while nothing is held."""
        for layer in layers:
            layer.resize(self.slots, self.positions)
        self.layers += layers

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
        first, used = self.used, self.used + count
        if used > self.slots:
            # Doubling keeps the copies of a slowly filling batch O(1) a row.
            self._grow(min(self.limit.rows, max(used, 2 * self.slots)), self.positions)
        self.used = used
        return first

    def reserve(self, positions: int) -> None:
        """Make every slot at least ``positions`` tokens long."""
        if positions > self.positions:
            self._grow(self.slots, grown(self.positions, positions, self.most_positions))

    def _grow(self, slots: int, positions: int) -> None:
        """All layers or none: where memory ends in the middle, those before shrink back."""
        for place, layer in enumerate(self.layers):
            before = layer.arrays
            try:
                layer.resize(slots, positions)
                # One layer at a time, so that old and new never exist for all of them at once.
                mx.eval(layer.arrays)
            except BaseException:
                layer.arrays, layer.slots, layer.positions = before, self.slots, self.positions
                for grown in self.layers[:place]:
                    grown.resize(self.slots, self.positions)
                raise
            del before
        self.slots, self.positions = slots, positions

    def fit(self, size: SlotSize, needed: int) -> None:
        """Have slots of the given size, as long as needed now.

        For callers that account for bytes (``slot_sizes.fitted``).
        """
        self.most_positions = size.positions
        size = replace(size, slots=max(size.slots, self.used))
        slots, positions = fitted(self.slots, self.positions, size, needed)
        if (slots, positions) != (self.slots, self.positions):
            self._grow(slots, positions)

    def trim(self) -> None:
        """Give all memory back while no slot is in use."""
        if self.used == 0:
            self.slots = self.positions = 0
            self.most_positions = self._cost = None
            for layer in self.layers:
                layer.resize(0, 0)

    def keep(self, order: Seq[int]) -> None:
        """Slot i takes over what slot ``order[i]`` holds; slots not named are given back.

        Only rows whose number changes are copied (``fill_holes`` makes an order that changes few),
        and written with the next pass.
        """
        self.used = len(order)
        moves = [(source, slot) for slot, source in enumerate(order) if source != slot]
        if moves:
            self._move(moves)

    def _move(self, moves: list[tuple[int, int]]) -> None:
        sources, slots = mx.array(moves, mx.int32).T
        schedule([array for layer in self.layers for array in layer.move(sources, slots)])

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """Copies of what a row holds of its tokens ``begin .. end - 1``."""
        state = self.describe(slot, begin, end)
        schedule(state.flat)
        return state

    def save_blocks(self, slot: int, begin: int, end: int, size: int) -> list[RowState]:
        """Blocks of ``size`` tokens, each with buffers of its own, computed by the caller."""
        return [self.describe(slot, start, start + size) for start in range(begin, end, size)]

    def on_the_way(self, state: RowState) -> RowState:
        """A stretch without the states at its end: what loading later ones with it needs."""
        pairs = zip(self.layers, state.parts, strict=True)
        return RowState(
            parts=tuple(
                RowState() if layer.folds and not layer.sliceable else part for layer, part in pairs
            )
        )

    def describe(self, slot: int, begin: int, end: int) -> RowState:
        """As :meth:`save`, computed by the caller: before the row is written to."""
        return RowState(parts=tuple(layer.save(slot, begin, end) for layer in self.layers))

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        """Put what was saved, of this pool or its like, one behind the other at ``begin ..``."""
        for place, layer in enumerate(self.layers):
            layer.load(slot, begin, [state.parts[place] for state in states])

    def wipe(self, slot: int, begin: int) -> None:
        """Make numbers of what a row's slot holds from position ``begin`` on."""
        for layer in self.layers:
            layer.wipe(slot, begin)

    def bind(self, span: Span) -> None:
        """Point every layer at the rows and positions of the next forward pass."""
        if span.limit > self.positions:
            raise CapacityError(
                f"[KVCachePool.bind] {span.limit} positions asked, {self.positions} exist"
            )
        for layer in self.layers:
            layer.bind(span)

    def commit(self, kept: mx.array | None) -> None:
        """Of the bound pass keep each row's first ``kept`` tokens [rows]; None: all of them."""
        for layer in self.layers:
            layer.commit(kept)

    def snapshot(self) -> PoolSnapshot:
        """References to the present arrays, to undo steps that were built but never launched.

        Drop it before launching: while it lives, writes cannot reuse the buffers (donation trap).
        """
        arrays = [layer.arrays for layer in self.layers]
        return PoolSnapshot(self.slots, self.positions, arrays)

    def restore(self, snapshot: PoolSnapshot) -> None:
        """Take the arrays of ``snapshot`` back."""
        self.slots, self.positions = snapshot.slots, snapshot.positions
        self._cost = None
        for layer, arrays in zip(self.layers, snapshot.arrays, strict=True):
            layer.slots, layer.positions = snapshot.slots, snapshot.positions
            layer.arrays = arrays

    def view(self) -> KVCachePool:
        """The same slots with caches of their own to be bound, that hold the present arrays."""
        view = copy.copy(self)
        view.layers = [copy.copy(layer) for layer in self.layers]
        own = iter(view.layers)
        view.caches = [with_leaves(cache, own) for cache in self.caches]
        return view

    def lend(self, view: KVCachePool) -> None:
        """Let a view hold the present arrays again."""
        for layer, own in zip(self.layers, view.layers, strict=True):
            own.arrays = layer.arrays

    def take_back(self, view: KVCachePool) -> None:
        """Take over the arrays of a view, which keeps none: MLX would copy what two hold."""
        for layer, own in zip(self.layers, view.layers, strict=True):
            layer.arrays, own.arrays = own.arrays, []

    @property
    def sliceable(self) -> bool:
        """Whether any stretch of a row can be saved, or only what ends where the row ends now."""
        return all(layer.sliceable for layer in self.layers)

    @property
    def folds(self) -> bool:
        """Whether some layer folds tokens into a state."""
        return any(layer.folds for layer in self.layers)

    def folded(self) -> list[tuple[LayerCache, list[mx.array]]]:
        """The states of such layers, by reference, to be assigned to their ``arrays`` again."""
        return [(layer, layer.arrays) for layer in self.layers if layer.folds]

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays, for ``mx.eval``."""
        return [array for layer in self.layers for array in layer.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(map(_bytes_of, self.layers))

    @property
    def nbytes_by_kind(self) -> Counter[str]:
        """The same by what is held, in a kind's own word (``kind``, if it has one)."""
        held: Counter[str] = Counter()
        for layer in self.layers:
            kind = getattr(layer, "kind", type(layer).__name__)
            held[kind] += _bytes_of(layer)
        return held

    @property
    def cost(self) -> RowCost:
        """Bytes of a row over all layers; none while nothing is held."""
        if self._cost is None and self.nbytes:
            self._cost = sum((layer.cost for layer in self.layers), RowCost())
        return self._cost or RowCost()


def _bytes_of(layer: LayerCache) -> int:
    """What a layer holds, which any thread may ask in the middle of a step: a kind whose ``arrays``
    describe something says it itself."""
    own: int | None = getattr(layer, "nbytes", None)
    return sum(array.nbytes for array in layer.arrays) if own is None else own


def schedule(arrays: list[mx.array]) -> None:
    """Have arrays computed without waiting for them, so that they leave what they read."""
    mx.async_eval(arrays)  # type: ignore[no-untyped-call]
