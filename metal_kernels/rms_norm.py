"""RMS normalisation, alone and fused with the residual add before it.

``add_rms_norm`` reads both addends once and writes the sum and its norm once; MLX's composition
(an add, then ``mx.fast.rms_norm``) reads the sum again and launches twice. ``rms_norm`` alone can
save nothing, since ``mx.fast.rms_norm`` reads and writes once already: it is here as the other's
foundation and for models whose norms are bound.

All arithmetic is in float32 and rounded once; ``add_rms_norm`` normalises the sum as it is stored.
The result has the type that MLX promotes to. Zhang and Sennrich 2019, "Root Mean Square Layer
Normalization".
"""

from __future__ import annotations

import mlx.core as mx

from metal_kernels import _runtime
from metal_kernels._checks import check_array, check_weight, fail
from metal_kernels._runtime import Operation, scalar, unread

_FILE = "rms_norm.metal"
_RUN = 4  # consecutive elements that a thread reads at a time, as in the source
_MAX_THREADS = 1024


def _reference(x: mx.array, weight: mx.array | None = None, eps: float = 1e-5) -> mx.array:
    """RMSNorm of the last axis.

    Args:
        x: [..., H], of any width.
        weight: [H], or None for ones.
        eps: added to the mean square.

    Returns:
        [..., H].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    wide = x.astype(mx.float32)
    normed = wide * mx.rsqrt(mx.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if weight is not None:
        normed = normed * weight.astype(mx.float32)
    return normed.astype(_type(x, weight))


def _kernel(x: mx.array, weight: mx.array | None = None, eps: float = 1e-5) -> mx.array:
    if x.size == 0:
        return x.astype(_type(x, weight))
    dtype = _type(x, weight)
    kernel = _runtime.build("rms_norm", _FILE, ["rms_norm"], ["x", "weight", "eps"], ["normed"])
    (normed,) = kernel(
        inputs=[x, unread() if weight is None else weight, scalar(eps)],
        template=[("O", dtype), *_template(x, weight)],
        output_shapes=[x.shape],
        output_dtypes=[dtype],
        **_launch(x),
    )
    return normed


def _check(x: mx.array, weight: mx.array | None = None, eps: float = 1e-5) -> None:
    check_array("rms_norm", "x", x, "... H")
    check_weight("rms_norm", "weight", weight, x.shape[-1])


def _add_reference(
    x: mx.array, residual: mx.array, weight: mx.array | None = None, eps: float = 1e-5
) -> tuple[mx.array, mx.array]:
    """The sum of two arrays, and its RMSNorm.

    Args:
        x, residual: [..., H], of one shape.
        weight: [H], or None for ones.
        eps: added to the mean square.

    Returns:
        The sum and the normed sum, both [..., H].

    Raises:
        ValueError: shapes or types that do not fit.
    """
    total = x + residual
    return total, _reference(total, weight, eps)


def _add_kernel(
    x: mx.array, residual: mx.array, weight: mx.array | None = None, eps: float = 1e-5
) -> tuple[mx.array, mx.array]:
    total_type = _type(x, residual)
    normed_type = total_type if weight is None else _promote(total_type, weight.dtype)
    if x.size == 0:
        return x.astype(total_type), x.astype(normed_type)
    kernel = _runtime.build(
        "add_rms_norm",
        _FILE,
        ["add_rms_norm"],
        ["x", "residual", "weight", "eps"],
        ["total", "normed"],
    )
    total, normed = kernel(
        inputs=[x, residual, unread() if weight is None else weight, scalar(eps)],
        template=[("S", total_type), ("O", normed_type), *_template(x, weight)],
        output_shapes=[x.shape, x.shape],
        output_dtypes=[total_type, normed_type],
        **_launch(x),
    )
    return total, normed


def _add_check(
    x: mx.array, residual: mx.array, weight: mx.array | None = None, eps: float = 1e-5
) -> None:
    check_array("add_rms_norm", "x", x, "... H")
    check_array("add_rms_norm", "residual", residual, "... H")
    if x.shape != residual.shape:
        raise fail("add_rms_norm", f"x is {x.shape} and residual {residual.shape}")
    check_weight("add_rms_norm", "weight", weight, x.shape[-1])


rms_norm = Operation("rms_norm", _check, _reference, _kernel)
add_rms_norm = Operation("add_rms_norm", _add_check, _add_reference, _add_kernel)


def _promote(one: mx.Dtype, other: mx.Dtype) -> mx.Dtype:
    """The type MLX computes a product of the two in."""
    if one == other:
        return one
    return mx.float32  # of float32, float16 and bfloat16 any two that differ meet there


def _type(x: mx.array, other: mx.array | None) -> mx.Dtype:
    return x.dtype if other is None else _promote(x.dtype, other.dtype)


def _threads(width: int) -> int:
    """Threads of the group that handles one row: a run each, as far as that goes."""
    return min(_MAX_THREADS, -(-width // (32 * _RUN)) * 32)


def _template(x: mx.array, weight: mx.array | None) -> list[tuple[str, int | bool]]:
    width = x.shape[-1]
    return [("H", width), ("THREADS", _threads(width)), ("WEIGHTED", weight is not None)]


def _launch(x: mx.array) -> dict[str, tuple[int, int, int]]:
    """One threadgroup a row."""
    width = x.shape[-1]
    threads = _threads(width)
    return {"grid": (x.size // width * threads, 1, 1), "threadgroup": (threads, 1, 1)}
