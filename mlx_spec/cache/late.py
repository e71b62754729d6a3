"""Keys and values that are quantized from one position of a text on: ``quantized_kv_start``.

A token before that position reads keys and values as the model computed them, a token from there on
reads all of them in few bits, those of the first tokens too: as in mlx-lm, which converts a text's
whole cache once it is so long. What a token reads depends on its position alone, not on the pass
that brings it nor on its neighbours::

    start = 6         keys 0 . . . . 5   6 . . . .
    query 4, plain         p p p p p                  both lie side by side; a pass in which there
    query 7, packed        q q q q q q   q q          are queries of both kinds reads both, and each
                                                      query takes its own (``Mixed``)

Packed ones are not made before some row needs them: all that is kept of texts that stay short is
what ``DenseKVCache`` keeps. From then on every token is written both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.quantized import Packed, QuantizedSlots
from mlx_spec.cache.span import Span

Read: TypeAlias = "mx.array | Packed | Mixed"


@dataclass(frozen=True)
class Mixed:
    """Keys, or values, of a pass with queries of both kinds: what attention over it must choose.

    Attributes:
        plain: [rows, heads, start, D], as the model computed them.
        packed: the same and those behind, in few bits.
    """

    plain: mx.array
    packed: Packed


class LateQuantizedSlots:
    """Keys and values of one layer, plain up to a position and packed from there on.

    Args:
        bits, group_size: as of ``QuantizedSlots``.
        start: position of the first token that reads packed ones, at least 1.

    Attributes:
        plain: the first ``start`` tokens of every row, and an entry that nobody reads.
        packed: all tokens of every row, once a row is longer than ``start``.
        mixed: whether the bound pass has queries of both kinds.
    """

    sliceable, folds = True, False
    offset: mx.array | int
    span: Span

    def __init__(self, bits: int, group_size: int, start: int) -> None:
        self.kind = f"{bits} bits late"
        self.start = start
        self.group_size = group_size
        self.plain = DenseKVCache()
        self.packed = QuantizedSlots(bits, group_size)
        self.slots = self.positions = 0
        self.early = self.mixed = False

    def __copy__(self) -> LateQuantizedSlots:
        """One that can be bound by itself."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.plain, other.packed = copy.copy(self.plain), copy.copy(self.packed)
        return other

    @property
    def bits(self) -> int:
        """Of a number; no such attribute while plain ones are read, for mlx-lm asks for that."""
        if self.early:
            raise AttributeError("bits")
        return self.packed.bits

    def bind(self, span: Span) -> None:
        """The rows and positions of the next pass."""
        self.span, self.offset = span, span.offset
        self.early = span.limit <= self.start
        self.mixed = not self.early and span.since < self.start
        self.packed.bind(span)
        if self.early:
            self.plain.bind(span)
        elif self.mixed:
            self.plain.bind(span.once(("up_to", self.start), lambda: span.up_to(self.start)))

    @property
    def early_queries(self) -> mx.array:
        """[rows, 1, N, 1] booleans: which new tokens of a mixed pass read plain ones."""
        return self.span.positions[:, None, :, None] < self.start

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """As of ``DenseKVCache``; always an array where queries differ."""
        return self.packed.make_mask(N, return_array or self.mixed, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Read, Read]:
        """Write [rows, H, N, D] at each row's position; return what attention reads."""
        if not self.early:
            self._pack()
        if self.packed.arrays or not self.early:
            self.packed.update_and_fetch(keys, values)
        if self.early or self.mixed:
            self.plain.update_and_fetch(keys, values)
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Read, Read]:
        """What attention reads in this pass, for layers that share it too."""
        if self.early:
            return self.plain.keys_and_values()
        late = self.packed.keys_and_values()
        if not self.mixed:
            return late
        plain = self.plain.keys_and_values()
        return Mixed(plain[0], late[0]), Mixed(plain[1], late[1])

    def _pack(self) -> None:
        """Make packed ones of all plain ones, where there are none yet."""
        if self.packed.arrays or not self.plain.arrays:
            return
        room = [(0, 0), (0, 0), (0, self.positions - self.plain.positions), (0, 0)]
        self.packed.arrays = [mx.pad(part, room) for part in self._packed(self.plain.arrays)]

    def _packed(self, plain: Seq[mx.array]) -> list[mx.array]:
        """Packed numbers, scales and biases of keys and values."""
        return [part for array in plain for part in self.packed.pack(array)]

    def commit(self, kept: mx.array | None) -> None:
        """Nothing to do, as for ``DenseKVCache``."""

    def resize(self, slots: int, positions: int) -> None:
        """Make room for more slots or positions, or fewer."""
        self.slots, self.positions = slots, positions
        self.plain.resize(slots, min(positions, self.start + 1))
        self.packed.resize(slots, positions)

    def move(self, sources: mx.array, slots: mx.array) -> list[mx.array]:
        """Copy rows to other slots, lazily; return the copies."""
        return [*self.plain.move(sources, slots), *self.packed.move(sources, slots)]

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """Copies of one row's tokens: plain ones before the start, packed ones from there on."""
        middle = min(max(begin, self.start), end)
        early = self.plain.save(slot, begin, middle) if begin < middle else RowState()
        late = self.packed.save(slot, middle, end) if middle < end else RowState()
        return RowState(parts=(early, late))

    def load(self, slot: int, begin: int, states: Seq[RowState]) -> None:
        """Write saved stretches of a row at ``begin ..``, lazily; the plain ones packed too, where
        there are packed ones at all: what that makes of a token is always the same."""
        early = [state.parts[0] for state in states if state.parts[0].arrays]
        late = [state.parts[1] for state in states if state.parts[1].arrays]
        if early:
            self.plain.load(slot, begin, early)
        if late:
            self._pack()
        if late or self.packed.arrays:
            packed = [RowState(tuple(self._packed(state.arrays))) for state in early]
            self.packed.load(slot, begin, packed + late)

    def wipe(self, slot: int, begin: int) -> None:
        """Zero one row from position ``begin`` on, lazily."""
        self.plain.wipe(slot, min(begin, self.start))
        self.packed.wipe(slot, begin)

    @property
    def state(self) -> Any:
        """As of ``QuantizedSlots``."""
        return self.packed.state

    @property
    def arrays(self) -> list[mx.array]:
        """Plain keys and values, then packed numbers, scales and biases of both."""
        return [*self.plain.arrays, *self.packed.arrays]

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None:
        plain = 2 if len(arrays) in (2, 8) else 0
        self.plain.arrays, self.packed.arrays = arrays[:plain], arrays[plain:]

    @property
    def cost(self) -> RowCost:
        """Of a long row: plain ones up to the start, and packed ones."""
        plain, packed = self.plain.cost.per_token, self.packed.cost.per_token
        if plain and not packed:
            described = self._packed([array[:, :, :1] for array in self.plain.arrays])
            packed = sum(array.nbytes for array in described) // max(1, self.slots)
        return RowCost(per_token=packed, capped=((self.start + 1, plain),))
