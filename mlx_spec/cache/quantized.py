"""One layer's keys and values for all running rows, kept in few bits a number.

As ``DenseKVCache``, but for what lies in a slot: groups of ``group_size`` numbers of a head share a
scale and a bias, so that a number costs ``bits`` bits and a group two numbers of the model's own
type. mlx-lm's attention sees ``bits`` and computes over the packed arrays as they are, as it does
for its own ``QuantizedKVCache``::

    keys of a token  |  32 numbers  |  32 numbers  |      packed   4 uint32 | 4 uint32    (4 bits)
    (one head)           scale, bias    scale, bias       scales   1 number | 1 number
                                                          biases   1 number | 1 number

The three lie at the same position of three arrays, and what is rolled back, moved or saved is all
of them. A group never reaches beyond its token, so a token's entry depends on that token alone: not
on the pass that wrote it, nor on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import mlx.core as mx

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import RowState
from mlx_spec.errors import UnsupportedModel

# Packed numbers, and of each group of them its scale and its bias.
Packed: TypeAlias = tuple[mx.array, mx.array, mx.array]


@dataclass(frozen=True)
class Packing:
    """What the arrays of a saved row stand for.

    Attributes:
        bits, group_size: as of ``QuantizedSlots``.
    """

    bits: int
    group_size: int

    def numbers(self, arrays: Seq[mx.array]) -> list[tuple[mx.array, mx.array]]:
        """Keys and values as numbers, each with the step between neighbouring ones: two numbers
        that are as good as equal may be packed into neighbours."""
        group, bits = self.group_size, self.bits
        return [
            (mx.dequantize(packed, scales, biases, group, bits), mx.abs(scales).max())
            for packed, scales, biases in (arrays[:3], arrays[3:])
        ]


class QuantizedSlots(DenseKVCache):
    """Quantized keys and values of one layer, three arrays each.

    Args:
        bits: of a number.
        group_size: numbers that share a scale and a bias.
    """

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self.kind = f"{bits} bits"
        # mlx-lm's attention function asks for these two.
        self.bits = bits
        self.group_size = group_size
        self._arrays: list[mx.array] = []

    def update_and_fetch(  # type: ignore[override]
        self, keys: mx.array, values: mx.array
    ) -> tuple[Packed, Packed]:
        """Write [rows, H, N, D] at each row's position; return what attention reads, packed."""
        self._write([*self.pack(keys), *self.pack(values)])
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Packed, Packed]:
        """What attention reads in this pass, packed, for layers that share it too."""
        span, read = self.span, self._arrays
        if span.count != self.slots:
            rows = slice(span.first, span.first + span.count)
            read = [buffer[rows] for buffer in read]
        if span.limit != self.positions:
            read = [buffer[span.read] for buffer in read]
        return (read[0], read[1], read[2]), (read[3], read[4], read[5])

    def _write(self, new: Seq[mx.array]) -> None:
        """Put new tokens into all arrays."""
        span = self.span
        if not self._arrays:
            self._arrays = [self._buffer(part) for part in new]
        if span.count == self.slots and not span.stretch:
            self._arrays = [
                mx.put_along_axis(buffer, span.index, part, 2)
                for buffer, part in zip(self._arrays, new, strict=True)
            ]
        else:
            self._arrays = list(self._scatter(*new))

    def pack(self, numbers: mx.array) -> Packed:
        """Keys or values [..., D] as packed numbers, scales and biases.

        Raises:
            UnsupportedModel: a head is not a whole number of groups.
        """
        width = numbers.shape[-1]
        if width == 0 or width % self.group_size:
            raise UnsupportedModel(
                f"keys or values of {width} numbers a head cannot be quantized in groups of "
                f"{self.group_size} (kv_group_size)"
            )
        packed, scales, biases = mx.quantize(numbers, self.group_size, self.bits)
        return packed, scales, biases

    def save(self, slot: int, begin: int, end: int) -> RowState:
        """As of ``DenseKVCache``, packed."""
        packing = Packing(self.bits, self.group_size)
        return replace(super().save(slot, begin, end), note=packing)

    @property
    def state(self) -> Any:
        """What models read whose layers share keys and values, or that attend by themselves.

        Raises:
            UnsupportedModel: always: they would take packed numbers for keys.
        """
        raise UnsupportedModel(
            f"layers that read each other's keys and values cannot read them in {self.bits} bits "
            "(kv_bits)"
        )

    @property
    def arrays(self) -> list[mx.array]:
        """Of keys and of values: packed numbers, scales, biases."""
        return self._arrays

    @arrays.setter
    def arrays(self, arrays: list[mx.array]) -> None:
        self._arrays = arrays
