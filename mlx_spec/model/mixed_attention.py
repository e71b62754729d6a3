"""Attention over rows of which some read quantized keys and values and some do not yet.

mlx-lm's attention function reads one kind. ``attend`` stands in its place where a pass has queries
of both (``cache.late.Mixed``): each kind is read by mlx-lm's own function, and each query takes the
one that its position asks for. All other calls are mlx-lm's. So a layer's code runs unmodified,
with this function where it calls that one, from the first time on that its model is to run with
``quantized_kv_start``.
"""

from __future__ import annotations

import types
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from mlx_spec.cache.late import LateQuantizedSlots, Mixed
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.rewired import with_global

_NAME = "scaled_dot_product_attention"


def attend(
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    """As mlx-lm's function of that name.

    Raises:
        UnsupportedModel: queries of both kinds, and a mask that the caches did not make.
    """
    out: mx.array
    if not isinstance(keys, Mixed):
        out = base.scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
        )
        return out
    owner: LateQuantizedSlots = cache
    if not isinstance(mask, mx.array):
        raise UnsupportedModel(f"a mask {mask!r} of a layer's own (quantized_kv_start)")
    plain = base.scaled_dot_product_attention(
        queries,
        keys.plain,
        values.plain,
        cache=owner.plain,
        scale=scale,
        mask=mask[..., : owner.start],
        sinks=sinks,
    )
    packed = base.scaled_dot_product_attention(
        queries, keys.packed, values.packed, cache=owner.packed, scale=scale, mask=mask, sinks=sinks
    )
    out = mx.where(owner.early_queries, plain, packed)
    return out


def bind_mixed(model: Any) -> None:
    """Let the layers of a model call ``attend``, from now on; twice is as once."""
    made: dict[type, type] = {}
    for _, module in model.named_modules():
        own = type(module)
        if calls(own.__call__, base.scaled_dot_product_attention):
            if own not in made:
                body = {"__module__": own.__module__, "__call__": calling(own.__call__, attend)}
                made[own] = type(own.__name__, (own,), body)
            module.__class__ = made[own]


def calls(call: Any, attention: Any) -> bool:
    """Whether a layer's code finds ``attention`` where it calls mlx-lm's attention function."""
    return (
        isinstance(call, types.FunctionType)
        and _NAME in call.__code__.co_names
        and call.__globals__.get(_NAME) is attention
    )


def calling(call: Any, attention: Any) -> Any:
    """The same code, with ``attention`` for the function that it finds in its module."""
    return with_global(call, _NAME, attention)
