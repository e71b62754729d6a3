"""Layers of mlx-lm's models, written again so that neighbouring operations become one kernel.

A kernel that fuses a residual add with the norm after it, or the norms of queries and keys with
their rotation, has no seam in mlx-lm: those operations stand side by side in a layer's code. So
the code is recognised by its fingerprint and replaced by an equal one. A layer whose code reads
otherwise, in another family or after an update of mlx-lm, is left as it is.
"""

from __future__ import annotations

import hashlib
import io
import textwrap
import tokenize
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import rope_utils

from mlx_spec.model.attention import unbound_class
from mlx_spec.model.code_text import source_of

Call: TypeAlias = Callable[..., Any]

# Fingerprints of ``__call__`` in mlx-lm 0.31.3 and 0.32.2.
# Pre-norm blocks: attention of the normed input, add, MLP of the normed sum, add.
PRE_NORM_BLOCKS = frozenset({"591a2aef52462677", "d950fef03a6f0d9f"})
# Attention with norms of each head's queries and keys before the rotation.
HEAD_NORM_ATTENTION = frozenset({"f714680604fe6291"})

# How tokens without a text of their own enter a fingerprint; comments and line breaks do not.
_BLOCKS = {
    tokenize.INDENT: "{",
    tokenize.DEDENT: "}",
    tokenize.NEWLINE: ";",
    tokenize.NL: "",
    tokenize.COMMENT: "",
}
_FREQUENCY_ROPES = (rope_utils.Llama3RoPE, rope_utils.ProportionalRoPE, rope_utils.YarnRoPE)


@cache
def fingerprint(call: Call) -> str | None:
    """A hash of a function's code without comments and layout; None if there is no source."""
    text_of_it = source_of(call)
    if text_of_it is None:
        return None
    source = textwrap.dedent(text_of_it)
    # Tokens, since they are the same for every version of Python (ast.unparse's text is not).
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    words = [_BLOCKS.get(token.type, token.string) for token in tokens]
    text = " ".join(word for word in words if word).replace(", )", " )")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_pre_norm_block(module: Any) -> bool:
    """Whether :func:`fused_block` does what this module does."""
    norm = getattr(module, "post_attention_layernorm", None)
    return type(norm) is nn.RMSNorm and fingerprint(type(module).__call__) in PRE_NORM_BLOCKS


def has_head_norms(module: Any) -> bool:
    """Whether :func:`fused_attention` does what this module does."""
    norms: list[Any] = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    return (
        all(type(norm) is nn.RMSNorm for norm in norms)
        and norms[0].eps == norms[1].eps
        and norms[0].weight.dtype == norms[1].weight.dtype
        and rope_options(getattr(module, "rope", None)) is not None
        and fingerprint(type(module).__call__) in HEAD_NORM_ATTENTION
    )


def rope_options(module: Any) -> dict[str, Any] | None:
    """The rotation of an mlx-lm module as keywords of ``metal_kernels.rope``; None if it is more.

    ``_freqs`` has its underscore by MLX's convention for arrays that are no parameters.
    """
    kind = unbound_class(type(module))
    if kind is nn.RoPE:
        return {
            "dims": module.dims,
            "traditional": module.traditional,
            "base": float(module.base),
            "scale": module.scale,
        }
    scaled = kind is rope_utils.YarnRoPE and module.mscale != 1.0
    if kind in _FREQUENCY_ROPES and not scaled:
        return {"dims": module.dims, "traditional": module.traditional, "freqs": module._freqs}
    return None


def row_offsets(offset: Any, rows: int) -> mx.array:
    """[rows] int32 of the offset that a cache gives: a number, or an array with one a row."""
    if isinstance(offset, mx.array):
        return mx.broadcast_to(offset.astype(mx.int32), (rows,))
    return mx.full((rows,), offset, mx.int32)


def bound_norm(rms_norm: Call) -> Call:
    """``nn.RMSNorm.__call__`` by another operation."""

    def call(self: Any, x: mx.array) -> mx.array:
        normed: mx.array = rms_norm(x, self.weight, self.eps)
        return normed

    return call


def bound_rope(rope: Call, original: Call, options: dict[str, Any]) -> Call:
    """A rotation's ``__call__`` by another operation; ``options`` as of :func:`rope_options`."""

    def call(self: Any, x: mx.array, offset: Any = 0, **more: Any) -> mx.array:
        if x.ndim != 4 or more:
            rotated: mx.array = original(self, x, offset=offset, **more)
        else:
            rotated = rope(x, row_offsets(offset, x.shape[0]), **options)
        return rotated

    return call


def fused_block(add_rms_norm: Call) -> Call:
    """A pre-norm block's ``__call__`` with its middle add and norm in one."""

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        attended = self.self_attn(self.input_layernorm(x), mask, cache)
        norm = self.post_attention_layernorm
        total, normed = add_rms_norm(x, attended, norm.weight, norm.eps)
        out: mx.array = total + self.mlp(normed)
        return out

    return call


def fused_attention(norm_rope: Call, attend: Call, options: dict[str, Any]) -> Call:
    """``__call__`` of attention with head norms, norms and rotations of both in one.

    Args:
        norm_rope: as ``metal_kernels.norm_rope``.
        attend: as mlx-lm's ``scaled_dot_product_attention``.
        options: of the layer's rotation, as of :func:`rope_options`.
    """

    def call(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        rows, tokens, _ = x.shape

        def by_head(projected: mx.array, heads: int) -> mx.array:
            return projected.reshape(rows, tokens, heads, -1).transpose(0, 2, 1, 3)

        queries, keys = norm_rope(
            by_head(self.q_proj(x), self.n_heads),
            by_head(self.k_proj(x), self.n_kv_heads),
            self.q_norm.weight,
            self.k_norm.weight,
            row_offsets(0 if cache is None else cache.offset, rows),
            eps=self.q_norm.eps,
            **options,
        )
        values = by_head(self.v_proj(x), self.n_kv_heads)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        attended = attend(queries, keys, values, cache=cache, scale=self.scale, mask=mask)
        out: mx.array = self.o_proj(attended.transpose(0, 2, 1, 3).reshape(rows, tokens, -1))
        return out

    return call
