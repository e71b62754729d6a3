"""Rotary position embedding with an offset of its own for each row, alone and fused with norms.

``norm_rope`` normalises and rotates the queries and the keys of a layer in one launch where
MLX's composition makes four (two norms, two rotations) and moves everything twice. ``rope`` alone
can save no bytes; it is here for models whose rotation is bound, and takes strided inputs as they
are. Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".
"""

from __future__ import annotations

import math

import mlx.core as mx

from metal_kernels import _runtime
from metal_kernels._checks import check_array, check_weight, fail
from metal_kernels._runtime import Operation, scalar, unread

_FILE = "rope.metal"
_HEADS = 4  # heads that one thread serves: as many as share an angle usefully
_THREADS = 128
# Inputs of both kernels, in the order in which ``_angle_inputs`` makes them.
_ANGLES = ("offsets", "freqs", "log2_base", "scale")
# Smaller arrays reach a kernel in another address space than larger ones; wider ones leave
# no registers.
_MIN_WIDTH, _MAX_WIDTH = 8, 1024


def _reference(
    x: mx.array,
    offsets: mx.array,
    *,
    dims: int,
    base: float = 10000.0,
    traditional: bool = False,
    scale: float = 1.0,
    freqs: mx.array | None = None,
) -> mx.array:
    """Rotate the first ``dims`` of each token by its position.

    Args:
        x: [B, H, N, D]; may be any view.
        offsets: [B] int32, position of each row's first token.
        dims: how many dims rotate, even; the rest pass through.
        base: of the geometric series of frequencies.
        traditional: pairs are neighbours; else ``dims / 2`` apart.
        scale: of the positions.
        freqs: [dims / 2], radians are position / freqs; instead of ``base``. May hold inf.

    Returns:
        [B, H, N, D].

    Raises:
        ValueError: shapes, types or dims that do not fit.
    """
    tokens = x.shape[2]
    positions = (offsets[:, None] + mx.arange(tokens)).astype(mx.float32) * scale
    angles = positions[:, None, :, None] * _speeds(dims, base, freqs)  # [B, 1, N, dims / 2]
    cosine, sine = mx.cos(angles), mx.sin(angles)
    head = x[..., :dims].astype(mx.float32)
    if traditional:
        one, two = head[..., ::2], head[..., 1::2]
    else:
        one, two = head[..., : dims // 2], head[..., dims // 2 :]
    turned = [one * cosine - two * sine, one * sine + two * cosine]
    if traditional:
        rotated = mx.stack(turned, axis=-1).flatten(-2)
    else:
        rotated = mx.concatenate(turned, axis=-1)
    return mx.concatenate([rotated.astype(x.dtype), x[..., dims:]], axis=-1)


def _kernel(
    x: mx.array,
    offsets: mx.array,
    *,
    dims: int,
    base: float = 10000.0,
    traditional: bool = False,
    scale: float = 1.0,
    freqs: mx.array | None = None,
) -> mx.array:
    rows, heads, tokens, width = x.shape
    if x.size == 0:
        return x
    kernel = _runtime.build(
        "rope",
        _FILE,
        ["rope"],
        ["x", *_ANGLES],
        ["out"],
        contiguous=False,
    )
    columns = width - dims // 2
    (out,) = kernel(
        inputs=[x, *_angle_inputs(offsets, base, scale, freqs)],
        template=[("T", x.dtype), ("HEADS", _HEADS), *_template(dims, traditional, freqs)],
        grid=(columns, tokens, rows * -(-heads // _HEADS)),
        threadgroup=(min(columns, _THREADS), 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


def _check(
    x: mx.array,
    offsets: mx.array,
    *,
    dims: int,
    base: float = 10000.0,
    traditional: bool = False,
    scale: float = 1.0,
    freqs: mx.array | None = None,
) -> None:
    check_array("rope", "x", x, "B H N D")
    _check_angles("rope", x, offsets, dims, freqs)


def _norm_reference(
    queries: mx.array,
    keys: mx.array,
    query_weight: mx.array,
    key_weight: mx.array,
    offsets: mx.array,
    *,
    dims: int,
    eps: float = 1e-5,
    base: float = 10000.0,
    traditional: bool = False,
    scale: float = 1.0,
    freqs: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """RMSNorm of each head of queries and keys, then :func:`rope` of both.

    Args:
        queries, keys: [B, Hq, N, D] and [B, Hk, N, D]; may be any views.
        query_weight, key_weight: [D].
        offsets, dims, base, traditional, scale, freqs: as in :func:`rope`.
        eps: added to the mean square.

    Returns:
        Queries and keys, rotated.

    Raises:
        ValueError: shapes, types or dims that do not fit.
    """

    def one(x: mx.array, weight: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        normed = wide * mx.rsqrt(mx.mean(wide * wide, axis=-1, keepdims=True) + eps) * weight
        turned = _reference(
            normed,
            offsets,
            dims=dims,
            base=base,
            traditional=traditional,
            scale=scale,
            freqs=freqs,
        )
        return turned.astype(x.dtype)

    return one(queries, query_weight), one(keys, key_weight)


def _norm_kernel(
    queries: mx.array,
    keys: mx.array,
    query_weight: mx.array,
    key_weight: mx.array,
    offsets: mx.array,
    *,
    dims: int,
    eps: float = 1e-5,
    base: float = 10000.0,
    traditional: bool = False,
    scale: float = 1.0,
    freqs: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    if queries.size == 0:
        return queries, keys
    kernel = _runtime.build(
        "norm_rope",
        _FILE,
        ["norm_rope"],
        ["queries", "keys", "query_weight", "key_weight", *_ANGLES, "eps"],
        ["rotated_queries", "rotated_keys"],
        contiguous=False,
    )
    width = queries.shape[3]
    units = (queries.size + keys.size) // width
    rotated_queries, rotated_keys = kernel(
        inputs=[
            queries,
            keys,
            mx.contiguous(query_weight),
            mx.contiguous(key_weight),
            *_angle_inputs(offsets, base, scale, freqs),
            scalar(eps),
        ],
        template=[("T", queries.dtype), ("D", width), *_template(dims, traditional, freqs)],
        grid=(units * 32, 1, 1),
        threadgroup=(min(units * 32, _THREADS), 1, 1),
        output_shapes=[queries.shape, keys.shape],
        output_dtypes=[queries.dtype, keys.dtype],
    )
    return rotated_queries, rotated_keys


def _norm_check(
    queries: mx.array,
    keys: mx.array,
    query_weight: mx.array,
    key_weight: mx.array,
    offsets: mx.array,
    *,
    dims: int,
    eps: float = 1e-5,
    base: float = 10000.0,
    traditional: bool = False,
    scale: float = 1.0,
    freqs: mx.array | None = None,
) -> None:
    name = "norm_rope"
    check_array(name, "queries", queries, "B Hq N D")
    check_array(name, "keys", keys, "B Hk N D")
    one, other = queries.shape, keys.shape
    if (one[0], *one[2:]) != (other[0], *other[2:]):
        raise fail(name, f"queries are {one} and keys {other}: B, N and D must agree")
    if queries.dtype != keys.dtype:
        raise fail(name, f"queries are {queries.dtype} and keys {keys.dtype}")
    check_weight(name, "query_weight", query_weight, one[3])
    check_weight(name, "key_weight", key_weight, one[3])
    if query_weight.dtype != key_weight.dtype:
        raise fail(name, f"weights are {query_weight.dtype} and {key_weight.dtype}")
    if not _MIN_WIDTH <= one[3] <= _MAX_WIDTH:
        raise fail(name, f"heads are {one[3]} wide, expected {_MIN_WIDTH}..{_MAX_WIDTH}")
    _check_angles(name, queries, offsets, dims, freqs)


rope = Operation("rope", _check, _reference, _kernel)
norm_rope = Operation("norm_rope", _norm_check, _norm_reference, _norm_kernel)


def _check_angles(
    name: str, x: mx.array, offsets: mx.array, dims: int, freqs: mx.array | None
) -> None:
    rows, width = x.shape[0], x.shape[3]
    if not isinstance(offsets, mx.array) or offsets.shape != (rows,):
        shape = getattr(offsets, "shape", type(offsets).__name__)
        raise fail(name, f"offsets are {shape}, expected one for each of {rows} rows")
    if not mx.issubdtype(offsets.dtype, mx.integer):
        raise fail(name, f"offsets are {offsets.dtype}, expected integers")
    if dims % 2 or not 0 < dims <= width:
        raise fail(name, f"dims={dims}, expected an even number in 2..{width}")
    if freqs is not None and freqs.shape != (dims // 2,):
        raise fail(name, f"freqs have shape {freqs.shape}, expected ({dims // 2},)")


def _speeds(dims: int, base: float, freqs: mx.array | None) -> mx.array:
    """[dims / 2] float32: radians a position."""
    if freqs is not None:
        return 1.0 / freqs.astype(mx.float32)
    exponents = -mx.arange(dims // 2).astype(mx.float32) / (dims // 2)
    return mx.power(2.0, exponents * math.log2(base))


def _angle_inputs(
    offsets: mx.array, base: float, scale: float, freqs: mx.array | None
) -> list[mx.array]:
    own = unread() if freqs is None else mx.contiguous(freqs.astype(mx.float32))
    positions = mx.contiguous(offsets.astype(mx.int32))
    return [positions, own, scalar(0.0 if freqs is not None else math.log2(base)), scalar(scale)]


def _template(dims: int, traditional: bool, freqs: mx.array | None) -> list[tuple[str, int | bool]]:
    return [("DIMS", dims), ("TRADITIONAL", traditional), ("CUSTOM", freqs is not None)]
