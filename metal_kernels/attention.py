"""Attention of few queries over slots, for decoding and for verifying drafts.

Keys and values lie in slots ``[B, Hkv, T, D]``, each row filled up to a length of its own. The
lengths take the place of a mask: nothing past a row's length is read, nothing of size N x T is
ever held, and every key is read once for all queries of its row and KV head, however many query
heads share it. The softmax is taken online, over tiles (Milakov and Gimelshein 2018; Dao et al.
2022, "FlashAttention"); where rows are few the keys are split and merged by a second pass
("Flash-Decoding", 2023). The output lies in memory as ``[B, N, Hq, D]``, which is what the
projection after it wants.

What is not done: no gradient, no arbitrary mask, no quantised cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import mlx.core as mx

from metal_kernels import _runtime
from metal_kernels._runtime import Operation, scalar, unread
from metal_kernels.attention_inputs import RowLengths, as_array, check
from metal_kernels.attention_plan import (
    K_PADDING,
    AttentionConfig,
    AttentionPlan,
    MemoryEstimate,
    estimate_memory,
    make_plan,
)

P = ParamSpec("P")

_FILE = "attention.metal"
_REDUCE_THREADS = 128


def _reference(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lengths: RowLengths,
    *,
    scale: float,
    window: int | None = None,
    sinks: mx.array | None = None,
    softcap: float | None = None,
) -> mx.array:
    """Softmax attention of each row's last N tokens over its first ``lengths`` keys.

    Args:
        q: [B, Hq, N, D], N = 1..16; any view.
        k, v: [B, Hkv, T, D] of q's type; any view. Hkv divides Hq.
        lengths: [B], valid keys of each row, the N new ones included: query n sees the keys
            j <= lengths - N + n. Integers, or an array, or :class:`Lengths`. To check an array
            the host must wait for it, once a call: where that matters, give ``Lengths``.
        scale: of the scores.
        window: query n sees only the last so many keys up to its own.
        sinks: [Hq], a score a head that takes part in the softmax without a value.
        softcap: scores become ``softcap * tanh(score / softcap)``.

    Returns:
        [B, Hq, N, D]; zeros where a query sees no key.

    Raises:
        ValueError: shapes, types or lengths that do not fit.
    """
    rows, kv_heads, capacity, width = k.shape
    tokens = q.shape[2]
    ends = as_array(lengths)[:, None, None, None, None]
    queries = q.astype(mx.float32).reshape(rows, kv_heads, -1, tokens, width)
    scores = scale * (queries @ k.astype(mx.float32)[:, :, None].swapaxes(-1, -2))
    if softcap is not None:
        scores = softcap * mx.tanh(scores / softcap)
    keys = mx.arange(capacity)
    positions = ends - tokens + mx.arange(tokens)[:, None]
    seen = (keys <= positions) & (keys < ends)
    if window is not None:
        seen = seen & (keys > positions - window)
    scores = mx.where(seen, scores, -mx.inf)
    top = mx.max(scores, axis=-1, keepdims=True) if capacity else mx.full((1,), -mx.inf)
    if sinks is not None:
        sinks = sinks.astype(mx.float32).reshape(kv_heads, -1, 1, 1)
        top = mx.maximum(top, sinks)
    top = mx.where(top == -mx.inf, 0.0, top)
    weights = mx.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + mx.exp(sinks - top)
    # What lies past the lengths may be anything, so that zero times it may not be zero.
    filled = mx.arange(capacity)[:, None] < ends[:, :, 0]
    out = weights @ mx.where(filled, v.astype(mx.float32), 0.0)[:, :, None]
    out = out / mx.where(total == 0, 1.0, total)
    return out.reshape(q.shape).astype(q.dtype)


def _kernel(
    config: AttentionConfig,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lengths: RowLengths,
    *,
    scale: float,
    window: int | None = None,
    sinks: mx.array | None = None,
    softcap: float | None = None,
) -> mx.array:
    """One pass over the keys, and a second over the splits if there are any."""
    rows, heads, tokens, width = q.shape
    if q.size == 0 or k.size == 0:
        return mx.zeros_like(q)
    plan = _plan(config, q, k)
    shape = (rows, tokens, heads, width)
    split_shape = (*shape[:3], plan.splits)
    sections = ["walk"] + ["merge_groups"] * (plan.key_groups > 1)
    single = plan.splits == 1
    kernel = _runtime.build(
        "attention" if single else "attention_split",
        _FILE,
        [*sections, "write_out" if single else "write_split"],
        ["q", "k", "v", "lengths", "scale", "sinks", "softcap"],
        ["out"] if single else ["partial", "stats"],
        contiguous=False,
    )
    extra = [unread() if sinks is None else mx.contiguous(sinks), scalar(softcap or 1.0)]
    outputs = kernel(
        inputs=[q, k, v, mx.contiguous(as_array(lengths)), scalar(scale), *extra],
        template=_template(plan, q, window, sinks, softcap),
        grid=(plan.threads, rows * k.shape[1] * plan.parts, plan.splits),
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[shape] if single else [(*split_shape, width), (*split_shape, 2)],
        output_dtypes=[q.dtype] if single else [mx.float32, mx.float32],
    )
    if single:
        (out,) = outputs
    else:
        partial, stats = outputs
        out = _reduce(partial, stats, sinks, plan.splits, q.dtype)
    return out.transpose(0, 2, 1, 3)


def _reduce(
    partial: mx.array, stats: mx.array, sinks: mx.array | None, splits: int, dtype: mx.Dtype
) -> mx.array:
    """[B, N, Hq, D] of the splits' partial results [B, N, Hq, splits, D]."""
    shape = (*partial.shape[:3], partial.shape[4])
    kernel = _runtime.build(
        "attention_reduce", _FILE, ["reduce"], ["partial", "stats", "sinks"], ["out"]
    )
    threads = math.prod(shape[:3]) * 32
    (out,) = kernel(
        inputs=[partial, stats, unread() if sinks is None else sinks],
        template=[
            ("T", dtype),
            ("D", shape[3]),
            ("SPLITS", splits),
            ("SINKS", sinks is not None),
        ],
        grid=(threads, 1, 1),
        threadgroup=(min(threads, _REDUCE_THREADS), 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
    )
    return out


def _template(
    plan: AttentionPlan,
    q: mx.array,
    window: int | None,
    sinks: mx.array | None,
    softcap: float | None,
) -> list[tuple[str, Any]]:
    return [
        ("T", q.dtype),
        ("D", q.shape[3]),
        ("K_PADDING", K_PADDING),
        ("ROWS", plan.rows),
        ("ROW_BLOCKS", plan.row_blocks),
        ("KEY_GROUPS", plan.key_groups),
        ("KEYS", plan.keys),
        ("PARTS", plan.parts),
        ("SPLITS", plan.splits),
        ("WINDOW", window or 0),
        ("SINKS", sinks is not None),
        ("CAPPED", softcap is not None),
    ]


def _plan(config: AttentionConfig, q: mx.array, k: mx.array) -> AttentionPlan:
    rows, heads, tokens, width = q.shape
    return make_plan(
        config,
        groups=rows * k.shape[1],
        queries=tokens * heads // k.shape[1],
        capacity=k.shape[2],
        head_dim=width,
        itemsize=q.dtype.size,
    )


class Attention(Operation[P, mx.array]):
    """The operation, with what it takes and the ways to spend it.

    Args:
        check: as for any operation.
        reference: likewise.
        kernel: takes the configuration first.
        config: how the kernel cuts the work up; it changes speed and memory, never the result.
    """

    def __init__(
        self,
        check: Callable[P, None],
        reference: Callable[P, mx.array],
        kernel: Any,
        config: AttentionConfig,
    ) -> None:
        super().__init__("attention", check, reference, functools.partial(kernel, config))
        self.config = config
        self._parts = (check, reference, kernel)

    def configured(self, config: AttentionConfig) -> Attention[P]:
        """The same operation, cut up otherwise: ``attention.configured(...)(q, k, v, ...)``."""
        return Attention(*self._parts, config)

    def memory_estimate(
        self,
        *,
        batch: int,
        q_heads: int,
        kv_heads: int,
        queries: int,
        capacity: int,
        head_dim: int,
        itemsize: int = 2,
    ) -> MemoryEstimate:
        """Bytes that one call takes beside its inputs, against unfused attention's.

        Args:
            batch: rows, B.
            q_heads: heads of queries.
            kv_heads: heads of keys and values.
            head_dim: numbers of a head.
            queries: new tokens of a row, N.
            capacity: keys of a slot, T.
            itemsize: bytes of an element.
        """
        return estimate_memory(
            self.config,
            batch=batch,
            q_heads=q_heads,
            kv_heads=kv_heads,
            queries=queries,
            capacity=capacity,
            head_dim=head_dim,
            itemsize=itemsize,
        )


attention = Attention(check, _reference, _kernel, AttentionConfig())
