"""Which of our caches stand for a model's own: the only file that knows mlx-lm's cache classes.

``plan(model)`` asks the model what it wants (its ``make_cache()``, else one full-attention cache a
layer) and answers class by class; there may be fewer or more caches than layers. A kind that is not
in the table below registers itself::

    register(TheirCache, lambda own: OurCache(own.size))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.ring import RingKVCache
from mlx_spec.errors import UnsupportedModel

# From one of the model's own caches, which says sizes, to ours for all slots.
Maker = Callable[[Any], LayerCache]

_KINDS: dict[type, Maker] = {
    KVCache: lambda own: DenseKVCache(),
    RotatingKVCache: lambda own: RingKVCache(own.max_size, own.keep),
}


def register(own: type, make: Maker) -> None:
    """Let caches of class ``own`` (exactly that, no subclass) be kept by what ``make`` returns."""
    _KINDS[own] = make


def kinds() -> frozenset[type]:
    """The classes of caches that something here stands for."""
    return frozenset(_KINDS)


def plan(model: Any) -> list[LayerCache]:
    """Empty caches for all slots, one for each that the model makes for itself.

    Raises:
        UnsupportedModel: a cache that no kind here stands for, by name.
    """
    name = model_name(model)
    try:
        caches = make_prompt_cache(model)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnsupportedModel(f"{name}: it makes no cache ({words[:200]})") from error
    foreign = [type(own).__name__ for own in caches if type(own) not in _KINDS]
    if foreign:
        raise UnsupportedModel(
            f"{len(foreign)} of {len(caches)} layers of this {name!r} model keep a "
            f"{', '.join(sorted(set(foreign)))}, which cannot be rolled back row by row yet; "
            "only full-attention layers (KVCache) are supported"
        )
    return [_KINDS[type(own)](own) for own in caches]


def model_name(model: Any) -> str:
    """The architecture that a model says it is, else the name of its class."""
    return str(getattr(model, "model_type", type(model).__name__))
