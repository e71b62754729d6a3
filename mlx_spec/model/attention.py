"""``attend``: stands where a layer's code calls mlx-lm's attention function.

That one knows a rectangle of queries and one kind of keys. Two passes have more:

- of a packed pass (``cache.packed_rows``) queries are put in their rectangle, and taken out again;
- of a pass with queries of which some read quantized keys and values and some do not yet
  (``cache.late.Mixed``) each kind is read by mlx-lm's own function, and each query takes the one
  that its position asks for.

All other calls are mlx-lm's. So a layer's code runs unmodified, with this function where it calls
that one, from the first time on that its model is to run in such a way; and it can be undone.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from mlx_spec.cache.late import LateQuantizedSlots, Mixed
from mlx_spec.cache.packed_rows import PackedRows
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
    if isinstance(cache, PackedRows):
        return cache.attend(attend, queries, keys, values, scale=scale, mask=mask, sinks=sinks)
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


class _Attending:
    """Marks the classes made here."""

    _unbound: type  # the class that the module had before


def bind_attention(model: Any) -> list[Any]:
    """Let the layers of a model call ``attend``, from now on; twice is as once.

    Returns:
        The modules that did not yet.
    """
    made: dict[type, type] = {}
    modules = [
        module
        for _, module in model.named_modules()
        if calls(type(module).__call__, base.scaled_dot_product_attention)
    ]
    for module in modules:
        own = type(module)
        if own not in made:
            body = {
                "__module__": own.__module__,
                "__call__": calling(own.__call__, attend),
                "_unbound": own,
            }
            made[own] = type(own.__name__, (_Attending, own), body)
        module.__class__ = made[own]
    return modules


def unbind_attention(modules: Iterable[Any]) -> None:
    """Give modules that were just bound the classes back that they had."""
    for module in modules:
        module.__class__ = type(module)._unbound


def unbound_class(cls: type) -> type:
    """The class that a module has but for that mark."""
    own: type = getattr(cls, "_unbound", cls)
    return own


class BoundAttention:
    """The binding of a model while it lives: others may change the classes of its modules too.

    Args:
        model: whose layers call ``attend`` from now on.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._bind()

    def _bind(self) -> None:
        bind_attention(self._model)
        self._classes = [
            (module, type(module))
            for _, module in self._model.named_modules()
            if any(_names_it(cls) for cls in type(module).__mro__)
        ]

    def hold(self) -> None:
        """Bind what was unbound since (kernels that were taken out), if anything was."""
        if any(type(module) is not own for module, own in self._classes):
            self._bind()


def _names_it(cls: type) -> bool:
    """Whether a class's own call has that name in it; what is bound over it may not."""
    return _NAME in getattr(getattr(vars(cls).get("__call__"), "__code__", None), "co_names", ())


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
