"""The verdict on a model, remembered while the model lives.

Tracing takes tens of milliseconds, and a notebook makes a decoder at every call. What a trace saw
can change while the model stays the same object: kernels are bound (modules change their class),
weights are cast, quantized or replaced by others of another shape. So a verdict is kept with a
*mark* of all that, which is compared at every call.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import kinds
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.attention import unbound_class
from mlx_spec.model.recurrence.mixer import own_class
from mlx_spec.model.support import Support, examine


class _Known(NamedTuple):
    model: weakref.ref[Any]
    mark: tuple[Any, ...]
    support: Support


_PLAIN = (bool, int, float, str)

# By identity: mlx modules are dictionaries and so have no hash.
_KNOWN: dict[tuple[int, CacheOptions], _Known] = {}


def support_of(model: Any, options: CacheOptions = PLAIN_CACHES) -> Support:
    """As ``support.examine``, which is asked again only if the model has changed since."""
    if not isinstance(model, nn.Module):
        return examine(model, options)  # nothing says what is in it
    key, mark = (id(model), options), _mark(model)
    entry = _KNOWN.get(key)
    if entry is not None and entry.model() is model and entry.mark == mark:
        return entry.support
    support = examine(model, options)
    if not support.recurrence.tried:
        return support  # weights were not computed yet, which is no mark
    owner = weakref.ref(model, lambda _: _KNOWN.pop(key, None))
    _KNOWN[key] = _Known(owner, mark, support)
    return support


def require(model: Any, options: CacheOptions = PLAIN_CACHES) -> Support:
    """The verdict for those who are about to run the model.

    Raises:
        UnsupportedModel: the verdict is ``"refused"``.
    """
    support = support_of(model, options)
    if support.verdict == "refused":
        raise UnsupportedModel(f"[ModelRunner] {support.reason}")
    return support


def _mark(model: Any) -> tuple[Any, ...]:
    """The kinds of caches that there are, the class of every module, and the types, shapes and
    numbers that it holds itself."""
    mark: list[Any] = [kinds()]
    waiting: list[Any] = [model]
    while waiting:
        item = waiting.pop()
        if isinstance(item, mx.array):
            mark += (item.dtype, item.shape)
        elif isinstance(item, dict):
            mark += (unbound_class(own_class(type(item))), *item)
            waiting += item.values()
            # Not among a module's items, and yet what its pass depends on: bits, dims, a flag.
            mark += (
                value for value in getattr(item, "__dict__", {}).values() if type(value) in _PLAIN
            )
        elif isinstance(item, (list, tuple)):
            waiting += item
    return tuple(mark)
