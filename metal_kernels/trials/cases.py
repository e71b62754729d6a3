"""What a kernel must get right at a point: itself, and its reference in float32 on the CPU.

Inputs punish: rows of attention are ragged, one of them empty and one of a single key, and what
lies past a length is NaN; norms meet zeros and large numbers; sampling rows bring every filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx

import metal_kernels
from metal_kernels.attention_plan import AttentionConfig
from metal_kernels.trials.pairs import (
    EPS,
    Side,
    by_head,
    normal,
    offsets_of,
    turns_of,
    weight_of,
)
from metal_kernels.trials.site import KernelPoint, KernelSite

Outputs = list[mx.array]

# Of a vector's largest value: rounding of the type, and of sums in another order.
TOLERANCE = {mx.float32: 1e-5, mx.float16: 1e-3, mx.bfloat16: 1e-2}
_ANGLES = 4  # rotations by up to a thousand positions lose so much more in their angles
_REST = 44  # keys beyond what fills all splits
_MOST_SAMPLED = 4  # rows: one with every filter


def error_of(ours: mx.array, truth: mx.array, factor: float = 1.0) -> float:
    """Largest difference in units of what the type allows, NaN if any value is; 0 .. 1 is right.

    What it allows is a share of the largest value of each vector (of a token, of a head), so that
    large ones hide nothing. Integers must be equal: the difference is infinite if they are not.
    """
    if ours.shape != truth.shape or ours.dtype != truth.dtype:
        return float("inf")
    if truth.dtype not in TOLERANCE:
        return 0.0 if bool(mx.array_equal(ours, truth)) else float("inf")
    wide, right = ours.astype(mx.float32), truth.astype(mx.float32)
    size = mx.abs(right).max(axis=-1, keepdims=True)
    wrong = mx.abs(wide - right) / mx.maximum(size, 1e-3 * size.max() + 1e-6)
    most: Any = wrong.max().item()
    return float(most) / (factor * TOLERANCE[truth.dtype])


def error_at(site: KernelSite, point: KernelPoint) -> float:
    """Of the kernel at a point, in units of its tolerance."""
    kernel, reference, factor = CASES[site.operation](site, point)
    if site.operation == "sample":  # single additions and products: the same on every device
        truth = _listed(reference())
    else:
        with mx.stream(mx.cpu):  # whose float32 products are float32's, on every machine
            truth = _listed(reference())
            mx.eval(truth)
    errors = [error_of(*both, factor) for both in zip(_listed(kernel()), truth, strict=True)]
    return next((error for error in errors if error != error), max(errors))


def _listed(outputs: Any) -> Outputs:
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)


def _norm(site: KernelSite, point: KernelPoint) -> tuple[Side, Side, float]:
    x = _uneven(normal(site, point.rows, point.tokens, site.q_heads, site.width))
    operation, arguments = metal_kernels.rms_norm, (x, weight_of(site), EPS)
    return (
        lambda: operation.kernel(*arguments),
        lambda: operation.reference(*arguments),
        1.0,
    )


def _add_norm(site: KernelSite, point: KernelPoint) -> tuple[Side, Side, float]:
    x, residual = (normal(site, point.rows, point.tokens, site.width) for _ in range(2))
    operation, arguments = metal_kernels.add_rms_norm, (_uneven(x), residual, weight_of(site), EPS)
    return (
        lambda: operation.kernel(*arguments),
        lambda: operation.reference(*arguments),
        1.0,
    )


def _uneven(x: mx.array) -> mx.array:
    """The first token of zeros, and the last row a hundred times as large."""
    last = mx.where(mx.arange(x.shape[0]) == x.shape[0] - 1, 100, 1)
    first = mx.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) > 0
    factors = last.reshape(-1, *(1,) * (x.ndim - 1)) * first.reshape(
        *x.shape[:2], *(1,) * (x.ndim - 2)
    )
    return x * factors.astype(x.dtype) if x.shape[0] * x.shape[1] > 1 else x


def _rope(site: KernelSite, point: KernelPoint) -> tuple[Side, Side, float]:
    x, offsets, turns = by_head(site, point, site.q_heads), offsets_of(point), turns_of(site)
    operation = metal_kernels.rope
    return (
        lambda: operation.kernel(x, offsets, **turns),
        lambda: operation.reference(x, offsets, **turns),
        _ANGLES,
    )


def _norm_rope(site: KernelSite, point: KernelPoint) -> tuple[Side, Side, float]:
    queries, keys = (by_head(site, point, heads) for heads in (site.q_heads, site.kv_heads))
    one: Any = weight_of(site)
    two: Any = weight_of(site)
    offsets, turns, operation = offsets_of(point), turns_of(site), metal_kernels.norm_rope
    return (
        lambda: operation.kernel(queries, keys, one, two, offsets, eps=EPS, **turns),
        lambda: operation.reference(queries, keys, one, two, offsets, eps=EPS, **turns),
        _ANGLES,
    )


def _attention(site: KernelSite, point: KernelPoint) -> tuple[Side, Side, float]:
    point = replace(point, keys=telling_keys(point.rows * site.kv_heads, point.keys))
    lengths = ragged(point.rows, point.keys)
    q = by_head(site, point, site.q_heads)
    filled = mx.arange(point.keys)[:, None] < mx.array(lengths)[:, None, None, None]
    # A view of a larger buffer, as the slots are read.
    k, v = (
        mx.where(
            mx.pad(filled, [(0, 0), (0, 0), (0, 9), (0, 0)]),
            normal(site, point.rows, site.kv_heads, point.keys + 9, site.width),
            mx.array(mx.nan, q.dtype),
        )[:, :, : point.keys]
        for _ in range(2)
    )
    options: dict[str, Any] = {"scale": site.width**-0.5, "window": site.window or None}
    options["sinks"] = normal(site, site.q_heads) if site.sinks else None
    operation = metal_kernels.attention
    return (
        lambda: operation.kernel(q, k, v, lengths, **options),
        lambda: operation.reference(q, k, v, lengths, **options),
        1.0,
    )


def telling_keys(groups: int, keys: int) -> int:
    """How many of a point's keys to check: those that fill all splits. More would show no other
    kernel, and the reference takes a CPU's time for each of them.

    >>> [telling_keys(groups, 16_384) for groups in (1, 8, 64, 256)]
    [16384, 2092, 300, 300]
    """
    config = AttentionConfig()
    splits = -(-config.threadgroups // groups)
    return min(keys, config.split_keys * splits + _REST)


def ragged(rows: int, keys: int) -> list[int]:
    """Lengths of rows: the longest, none, one, all but one, and some around edges of tiles.

    >>> ragged(6, 300)
    [300, 0, 1, 299, 32, 33]
    """
    edges = [keys, 0, 1, keys - 1, 32, 33, 31, keys // 2]
    return [min(edges[row % len(edges)], keys) for row in range(rows)]


def _sample(site: KernelSite, point: KernelPoint) -> tuple[Side, Side, float]:
    rows = min(point.rows, _MOST_SAMPLED)
    logits = 3 * normal(site, rows, point.tokens, site.width)
    positions = mx.broadcast_to(mx.arange(point.tokens), logits.shape[:2])
    more = metal_kernels.MoreFilters(xtc_probability=0.5, xtc_threshold=0.05)
    none = metal_kernels.MoreFilters()
    options = metal_kernels.SampleRows.of(
        range(rows),
        [0.8] * rows,
        [1.0, 0.9, 1.0, 0.95][:rows],
        [0, 40, 0, 20][:rows],
        [0.0, 0.0, 0.05, 0.0][:rows],
        [none, none, none, more][:rows],
    )
    operation = metal_kernels.sample
    return (
        lambda: operation.kernel(logits, positions, options).tokens,
        lambda: operation.reference(logits, positions, options).tokens,
        1.0,
    )


CASES: dict[str, Callable[[KernelSite, KernelPoint], tuple[Side, Side, float]]] = {
    "rms_norm": _norm,
    "add_rms_norm": _add_norm,
    "rope": _rope,
    "norm_rope": _norm_rope,
    "attention": _attention,
    "sample": _sample,
}
