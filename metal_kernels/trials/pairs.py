"""The two sides of each trial: our kernel, and MLX's composition of the same values.

Inputs are made when a pair is asked for, seeded by nothing: times do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

import metal_kernels
from metal_kernels.attention_inputs import Lengths
from metal_kernels.trials.site import KernelPoint, KernelSite

Side = Callable[[], Any]
Pair = Callable[[KernelSite, KernelPoint], tuple[Side, Side]]
EPS = 1e-5


def dtype_of(name: str) -> mx.Dtype:
    """mlx's type of a name."""
    found: mx.Dtype = getattr(mx, name)
    return found


def normal(site: KernelSite, *shape: int) -> mx.array:
    """Noise in the type that the model computes in."""
    return mx.random.normal(shape).astype(dtype_of(site.dtype))


def weight_of(site: KernelSite) -> mx.array | None:
    """Of a norm."""
    if not site.weight:
        return None
    return (1 + 0.1 * mx.random.normal((site.width,))).astype(dtype_of(site.weight))


def by_head(site: KernelSite, point: KernelPoint, heads: int) -> mx.array:
    """[B, H, N, D] as a projection leaves it: a view of [B, N, H, D]."""
    return normal(site, point.rows, point.tokens, heads, site.width).transpose(0, 2, 1, 3)


def turns_of(site: KernelSite) -> dict[str, Any]:
    """The rotation as keywords of ``metal_kernels.rope``."""
    turns: dict[str, Any] = {"dims": site.dims, "traditional": site.traditional}
    if site.custom:
        turns["freqs"] = 10000.0 ** (mx.arange(0, site.dims, 2) / site.dims)
    return turns


def turned(x: mx.array, site: KernelSite, offsets: mx.array) -> mx.array:
    """MLX's rotation."""
    turns = turns_of(site)
    freqs = turns.pop("freqs", None)
    base = 10000.0 if freqs is None else None
    return mx.fast.rope(x, **turns, base=base, scale=1.0, offset=offsets, freqs=freqs)


def norm_pair(site: KernelSite, point: KernelPoint) -> tuple[Side, Side]:
    """RMSNorm of the residual stream, or of heads."""
    x = normal(site, point.rows, point.tokens, site.q_heads, site.width)
    weight = weight_of(site)
    return (
        lambda: metal_kernels.rms_norm.kernel(x, weight, EPS),
        lambda: mx.fast.rms_norm(x, weight, EPS),
    )


def add_norm_pair(site: KernelSite, point: KernelPoint) -> tuple[Side, Side]:
    """Residual add and RMSNorm."""
    x, residual = (normal(site, point.rows, point.tokens, site.width) for _ in range(2))
    weight = weight_of(site)

    def theirs() -> tuple[mx.array, mx.array]:
        total = x + residual
        return total, mx.fast.rms_norm(total, weight, EPS)

    return lambda: metal_kernels.add_rms_norm.kernel(x, residual, weight, EPS), theirs


def rope_pair(site: KernelSite, point: KernelPoint) -> tuple[Side, Side]:
    """The rotation of queries or keys."""
    x, offsets, turns = by_head(site, point, site.q_heads), offsets_of(point), turns_of(site)
    return (
        lambda: metal_kernels.rope.kernel(x, offsets, **turns),
        lambda: turned(x, site, offsets),
    )


def norm_rope_pair(site: KernelSite, point: KernelPoint) -> tuple[Side, Side]:
    """Head norms and rotations of queries and keys."""
    queries, keys = (by_head(site, point, heads) for heads in (site.q_heads, site.kv_heads))
    weights: list[Any] = [weight_of(site) for _ in range(2)]
    offsets, turns = offsets_of(point), turns_of(site)

    def theirs() -> list[mx.array]:
        both = zip((queries, keys), weights, strict=True)
        normed = [mx.fast.rms_norm(x, weight, EPS) for x, weight in both]
        return [turned(x, site, offsets) for x in normed]

    return (
        lambda: metal_kernels.norm_rope.kernel(
            queries, keys, weights[0], weights[1], offsets, eps=EPS, **turns
        ),
        theirs,
    )


def attention_pair(site: KernelSite, point: KernelPoint) -> tuple[Side, Side]:
    """Attention over slots, to the layout that the projection after it reads."""
    q = mx.contiguous(by_head(site, point, site.q_heads))
    k, v = (normal(site, point.rows, site.kv_heads, point.keys, site.width) for _ in range(2))
    lengths = mx.maximum(point.keys - 3 * mx.arange(point.rows), point.tokens)
    positions = (lengths - point.tokens)[:, None, None, None] + mx.arange(point.tokens)[:, None]
    keys = mx.arange(point.keys)
    # One row decodes without a mask, as in the engine.
    mask: Any = keys <= positions
    if site.window:
        mask = mask & (keys > positions - site.window)
    elif point.rows == 1:
        mask = "causal" if point.tokens > 1 else None
    sinks = normal(site, site.q_heads) if site.sinks else None
    scale = site.width**-0.5
    made = [array for array in (q, k, v, lengths, mask, sinks) if isinstance(array, mx.array)]
    mx.eval(made)

    def by_token(out: mx.array) -> mx.array:
        return out.transpose(0, 2, 1, 3).reshape(point.rows, point.tokens, -1)

    def ours() -> mx.array:
        bound = Lengths(lengths, point.keys)
        window = site.window or None
        return by_token(
            metal_kernels.attention.kernel(q, k, v, bound, scale=scale, window=window, sinks=sinks)
        )

    def theirs() -> mx.array:
        return by_token(
            mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
        )

    return ours, theirs


def sample_pair(site: KernelSite, point: KernelPoint) -> tuple[Side, Side]:
    """Tokens of rows that sample, every second of them with a top-p."""
    logits = 3 * normal(site, point.rows, point.tokens, site.width)
    positions = mx.broadcast_to(mx.arange(point.tokens), logits.shape[:2])
    rows = metal_kernels.SampleRows.of(
        range(point.rows),
        [0.8] * point.rows,
        [0.9 if row % 2 else 1.0 for row in range(point.rows)],
    )
    return (
        lambda: metal_kernels.sample.kernel(logits, positions, rows).tokens,
        lambda: metal_kernels.sample.reference(logits, positions, rows).tokens,
    )


def offsets_of(point: KernelPoint) -> mx.array:
    """[B] positions of the rows' first new tokens: 0, 31, 62, ..."""
    return 31 * mx.arange(point.rows, dtype=mx.int32)


PAIRS: dict[str, Pair] = {
    "rms_norm": norm_pair,
    "add_rms_norm": add_norm_pair,
    "rope": rope_pair,
    "norm_rope": norm_rope_pair,
    "attention": attention_pair,
    "sample": sample_pair,
}
