"""What attention takes, and the errors for what it does not. Nothing is launched here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import mlx.core as mx

from metal_kernels._checks import check_array, check_weight, fail

MAX_TOKENS = 16
MAX_HEAD_DIM = 256
_HEAD_DIM_UNIT = 8


@dataclass(frozen=True)
class Lengths:
    """Lengths on the device, with a bound that the host knows: checking them waits for nothing.

    Attributes:
        array: [B] integers.
        most: none of them is larger. One that is all the same is cut to the slot by the kernel.
    """

    array: mx.array
    most: int


RowLengths: TypeAlias = "Sequence[int] | mx.array | Lengths"


def check(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lengths: RowLengths,
    *,
    scale: float,
    window: int | None = None,
    sinks: mx.array | None = None,
    softcap: float | None = None,
) -> None:
    name = "attention"
    check_array(name, "q", q, "B Hq N D")
    check_array(name, "k", k, "B Hkv T D")
    check_array(name, "v", v, "B Hkv T D")
    rows, heads, tokens, width = q.shape
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (rows, width):
        raise fail(name, f"q is {q.shape}, k {k.shape}, v {v.shape}: B, D or T do not agree")
    if not q.dtype == k.dtype == v.dtype:
        raise fail(name, f"q is {q.dtype}, k {k.dtype}, v {v.dtype}, expected one type")
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise fail(name, f"{heads} query heads, {k.shape[1]} KV heads: no whole number for each")
    if not supports_head_dim(width):
        raise fail(
            name, f"head dim {width}, expected a multiple of {_HEAD_DIM_UNIT} up to {MAX_HEAD_DIM}"
        )
    if not 1 <= tokens <= MAX_TOKENS:
        raise fail(name, f"{tokens} new tokens a row, expected 1..{MAX_TOKENS}")
    if window is not None and window < 1:
        raise fail(name, f"window={window}, expected >= 1")
    if softcap is not None and not softcap > 0:
        raise fail(name, f"softcap={softcap}, expected > 0")
    check_weight(name, "sinks", sinks, heads)
    _check_lengths(lengths, rows, k.shape[2])


def supports_head_dim(width: int) -> bool:
    """Whether the kernel has this head dim."""
    return 0 < width <= MAX_HEAD_DIM and width % _HEAD_DIM_UNIT == 0


def _check_lengths(lengths: RowLengths, rows: int, capacity: int) -> None:
    array = as_array(lengths)
    if array.shape != (rows,):
        raise fail("attention", f"lengths have shape {array.shape}, expected ({rows},)")
    if isinstance(lengths, Lengths):
        least, most = 0, lengths.most
    else:
        values = cast("list[int]", array.tolist())
        least, most = min(values, default=0), max(values, default=0)
    if most > capacity:
        raise fail("attention", f"a length of {most}, the slots hold {capacity} keys (T)")
    if least < 0:
        raise fail("attention", f"a length of {least}, expected >= 0")


def as_array(lengths: RowLengths) -> mx.array:
    """[B] int32."""
    array = lengths.array if isinstance(lengths, Lengths) else lengths
    if not isinstance(array, mx.array):
        return mx.array([int(n) for n in array], mx.int32)
    if not mx.issubdtype(array.dtype, mx.integer):
        raise fail("attention", f"lengths are {array.dtype}, expected integers")
    return array.astype(mx.int32)
