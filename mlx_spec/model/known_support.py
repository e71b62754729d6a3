"""The verdict on a model, remembered while the model lives.

Tracing takes tens of milliseconds, and a notebook makes a decoder at every call. What a trace saw
can change while the model stays the same object: kernels are bound (modules change their class),
weights are cast, quantized or replaced by others of another shape. So a verdict is kept with a
*mark* of all that, which is compared at every call.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import kinds
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.attention import unbound_class
from mlx_spec.model.recurrence.mixer import own_class
from mlx_spec.model.support import Support, examine
from mlx_spec.weak_memo import WeakMemo

_PLAIN = (bool, int, float, str)

# The verdict, and what the model was like then.
_KNOWN = WeakMemo[tuple[tuple[Any, ...], Support]]()


def support_of(model: Any, options: CacheOptions = PLAIN_CACHES) -> Support:
    """As ``support.examine``, which is asked again only if the model has changed since."""
    if not isinstance(model, nn.Module):
        return examine(model, options)  # nothing says what is in it
    mark, known = _mark(model), _KNOWN.get(model, key=options)
    if known is not None and known[0] == mark:
        return known[1]
    support = examine(model, options)
    if support.recurrence.tried:  # else weights were not computed yet, which is no mark
        _KNOWN.keep((mark, support), model, key=options)
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
