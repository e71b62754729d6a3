"""Planted bugs of quantized caches, each of which rows that come, go and return must notice."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.late import LateQuantizedSlots
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.quantized import QuantizedSlots
from mlx_spec.cache.span import Span
from mlx_spec.config import CacheOptions
from mlx_spec.model.rows import Rows
from tests.test_quantized_kv import wrong_late_rows, wrong_rows

Patch = pytest.MonkeyPatch
SCALES = (1, 2, 4, 5)  # places of scales and biases among a layer's arrays
ALWAYS, LATE = CacheOptions(4, 32), CacheOptions(4, 32, quantized_kv_start=16)


def scales_not_rolled_back(patch: Patch) -> None:
    """What a rejected token left there stays: a scale is written once."""
    right = QuantizedSlots._write

    def wrong(self: QuantizedSlots, new: Seq[mx.array]) -> None:
        before = self.arrays
        right(self, new)
        arrays = self.arrays
        for place in SCALES if before else ():
            arrays[place] = mx.where(before[place] == 0, arrays[place], before[place])

    patch.setattr(QuantizedSlots, "_write", wrong)


def scales_left_behind(patch: Patch) -> None:
    """A row that moves takes its packed numbers along and finds the scales of another one."""

    def wrong(self: QuantizedSlots, sources: mx.array, slots: mx.array) -> list[mx.array]:
        self.arrays = [
            array if place in SCALES else array.at[slots].add(array[sources] - array[slots])
            for place, array in enumerate(self.arrays)
        ]
        return []

    patch.setattr(QuantizedSlots, "move", wrong)


def scales_of_another_group(patch: Patch) -> None:
    right = QuantizedSlots.pack

    def wrong(self: QuantizedSlots, numbers: mx.array) -> Any:
        packed, scales, biases = right(self, numbers)
        return packed, mx.roll(scales, 1, axis=-1), biases

    patch.setattr(QuantizedSlots, "pack", wrong)


def scales_of_the_first_slot(patch: Patch) -> None:
    right = QuantizedSlots.save

    def wrong(self: QuantizedSlots, slot: int, begin: int, end: int) -> RowState:
        mine, first = right(self, slot, begin, end).arrays, right(self, 0, begin, end).arrays
        return RowState(tuple((first if i in SCALES else mine)[i] for i in range(len(mine))))

    patch.setattr(QuantizedSlots, "save", wrong)


def one_token_too_early(patch: Patch) -> None:
    """The token before the start reads what the one at it does."""

    def wrong(self: LateQuantizedSlots) -> mx.array:
        return self.span.positions[:, None, :, None] < self.start - 1

    patch.setattr(LateQuantizedSlots, "early_queries", property(wrong))


def all_rows_as_the_longest(patch: Patch) -> None:
    """Where one row is past the start, others are taken to be."""
    right = Rows.span

    def wrong(self: Rows, *, grouped: bool = False) -> Span:
        span = right(self, grouped=grouped)
        span.since = span.limit - span.width
        return span

    patch.setattr(Rows, "span", wrong)


def returning_unpacked(patch: Patch) -> None:
    """The first tokens of a row that returns are not packed again."""
    patch.setattr(
        LateQuantizedSlots,
        "_packed",
        lambda self, plain: [mx.zeros_like(a) for x in plain for a in self.packed.pack(x)],
    )


PLANTED = [
    scales_not_rolled_back,
    scales_left_behind,
    scales_of_another_group,
    scales_of_the_first_slot,
]
PLANTED_LATE = [one_token_too_early, all_rows_as_the_longest, returning_unpacked]


@pytest.mark.parametrize("plant", PLANTED, ids=[plant.__name__ for plant in PLANTED])
def test_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert wrong_rows(ALWAYS) > 0


@pytest.mark.parametrize("plant", PLANTED_LATE, ids=[plant.__name__ for plant in PLANTED_LATE])
def test_planted_bug_of_the_start_is_noticed(
    plant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    assert wrong_late_rows(LATE) > 0
