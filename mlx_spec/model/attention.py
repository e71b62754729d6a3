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
from mlx_spec.cache.packed_rows import packed_queries
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
    packed = packed_queries(queries, cache)
    if packed is not None:
        more: dict[str, Any] = {"cache": cache, "scale": scale, "mask": mask, "sinks": sinks}
        return packed.attend(attend, queries, keys, values, **more)
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
    modules = []
    for _, module in model.named_modules():
        own = type(module)
        if own not in made:
            made[own] = _attending(own)
        if made[own] is not own:
            module.__class__ = made[own]
            modules.append(module)
    return modules


def _attending(own: type) -> type:
    """The class whose code calls ``attend``; itself where none calls mlx-lm's function."""
    names = {name for cls in own.__mro__ for name, code in vars(cls).items() if _names_it(code)}
    found = {name: getattr(own, name) for name in names}
    theirs = base.scaled_dot_product_attention
    bound = {name: calling(code, attend) for name, code in found.items() if calls(code, theirs)}
    if not bound:
        return own
    body = {"__module__": own.__module__, "_unbound": own, **bound}
    return type(own.__name__, (_Attending, own), body)


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
            if any(_names_it(code) for cls in type(module).__mro__ for code in vars(cls).values())
        ]

    def hold(self) -> None:
        """Bind what was unbound since (kernels that were taken out), if anything was."""
        if any(type(module) is not own for module, own in self._classes):
            self._bind()


def _names_it(code: Any) -> bool:
    """Whether something is a function with that name in it."""
    return isinstance(code, types.FunctionType) and _NAME in code.__code__.co_names


def calls(call: Any, attention: Any) -> bool:
    """Whether a layer's code finds ``attention`` where it calls mlx-lm's attention function."""
    return _names_it(call) and call.__globals__.get(_NAME) is attention


def calling(call: Any, attention: Any) -> Any:
    """The same code, with ``attention`` for the function that it finds in its module."""
    return with_global(call, _NAME, attention)
