"""Which of our caches stand for a model's own: the only file that knows mlx-lm's cache classes.

``plan(model)`` asks the model what it wants (its ``make_cache()``, else one full-attention cache a
layer) and answers class by class, lists of caches member by member; there may be fewer or more
caches than layers. A kind that is not in the table below registers itself::

    register(TheirCache, lambda own: OurCache(own.size))
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlx_spec.cache.chunked import ChunkedRing
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.device import plans_by_shape
from mlx_spec.cache.late import LateQuantizedSlots
from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.quantized import QuantizedSlots
from mlx_spec.cache.ring import RingKVCache
from mlx_spec.cache.several import OwnCaches, SeveralCaches, leaves
from mlx_spec.cache.state import StateCache
from mlx_spec.config import KEPT_TOKENS, PLAIN_CACHES, CacheOptions
from mlx_spec.errors import UnsupportedModel


class _States(StateCache, ArraysCache):  # type: ignore[misc]
    """Some models ask whether it is one of mlx-lm's."""


# From one of the model's own caches, which says sizes, to ours for all slots.
Maker = Callable[[Any], LayerCache]

_KINDS: dict[type, Maker] = {
    KVCache: lambda own: DenseKVCache(in_steps=plans_by_shape()),
    QuantizedKVCache: lambda own: QuantizedSlots(own.bits, own.group_size),
    RotatingKVCache: lambda own: RingKVCache(own.max_size, own.keep),
    ChunkedKVCache: lambda own: ChunkedRing(own.chunk_size),
    ArraysCache: lambda own: _States(len(own.cache)),
}


_WORDS: dict[type, str] = {
    KVCache: "full",
    QuantizedKVCache: "packed",
    RotatingKVCache: "window",
    ChunkedKVCache: "chunk",
    ArraysCache: "states",
}


def register(own: type, make: Maker) -> None:
    """Let caches of class ``own`` (exactly that, no subclass) be kept by what ``make`` returns."""
    _KINDS[own] = make


def kinds() -> frozenset[type]:
    """The classes of caches that something here stands for."""
    return frozenset(_KINDS)


def plan(model: Any, options: CacheOptions = PLAIN_CACHES) -> list[OwnCaches]:
    """Empty caches for all slots, one for each that the model makes for itself.

    Raises:
        UnsupportedModel: a cache that no kind here stands for, by name; or options that change
            none of them.
    """
    caches = own_caches(model, options)
    wanted = [{type(own) for own in _members(cache)} for cache in caches]
    foreign = [classes - kinds() for classes in wanted if classes - kinds()]
    if foreign:
        names = sorted({cls.__name__ for classes in foreign for cls in classes})
        raise UnsupportedModel(
            f"{len(foreign)} of {len(caches)} layers of this {model_name(model)!r} model keep a "
            f"{', '.join(names)}, which cannot be rolled back row by row yet; supported are "
            f"{', '.join(sorted(cls.__name__ for cls in kinds()))}"
        )
    return [_stand(cache, options.quantized_kv_start) for cache in caches]


def own_caches(model: Any, options: CacheOptions = PLAIN_CACHES) -> list[Any]:
    """Caches of mlx-lm's classes for one text, as the model makes them and the options change them.

    What is changed is full attention that is a layer's own cache, as in mlx-lm; what does not grow
    with the text is left as it is.

    Raises:
        UnsupportedModel: the model makes none, or there is none to be changed.
    """
    name = model_name(model)
    try:
        caches = list(make_prompt_cache(model))
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnsupportedModel(f"{name}: it makes no cache ({words[:200]})") from error
    wanted = _in_the_place_of_full_attention(options)
    if wanted is None:
        return caches
    asked, make = wanted
    if not any(type(own) is KVCache for own in caches):
        found = ", ".join(sorted({type(own).__name__ for own in caches})) or "none"
        raise UnsupportedModel(
            f"{asked} asked, but no layer of this {name!r} model keeps a KVCache of its own, which "
            f"is what that changes; its caches: {found}"
        )
    return [make() if type(own) is KVCache else own for own in caches]


def cut_anywhere(model: Any) -> bool:
    """Whether what its layers keep of a text can be had up to any token, as they are by default."""
    try:
        return all(layer.sliceable for cache in plan(model) for layer in leaves(cache))
    except UnsupportedModel:
        return True  # whoever runs it says so


def caches_in_words(model: Any) -> str:
    """What a model's layers keep: ``22 window of 512, 4 full``.

    Raises:
        UnsupportedModel: it makes no cache.
    """
    counts = Counter(map(_in_words, own_caches(model)))
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _in_words(own: Any) -> str:
    if type(own) is CacheList:
        return f"({' + '.join(map(_in_words, own.caches))})"
    if isinstance(own, RotatingKVCache):
        return f"window of {own.max_size:,}"
    if isinstance(own, ChunkedKVCache):
        return f"chunk of {own.chunk_size:,}"
    words = {KVCache: "full", QuantizedKVCache: "full, quantized", ArraysCache: "state"}
    return words.get(type(own), type(own).__name__)


def full_attention_cache() -> Any:
    """mlx-lm's cache of one layer of full attention, for a layer that is nobody's model."""
    return KVCache()


def _in_the_place_of_full_attention(
    options: CacheOptions,
) -> tuple[str, Callable[[], Any]] | None:
    """The option that asks for other caches than ``KVCache``, and what makes one."""
    bits, size = options.kv_bits, options.max_kv_size
    if bits is not None:
        group = options.kv_group_size
        return f"kv_bits={bits}", lambda: QuantizedKVCache(group, bits)
    if size is not None:
        return f"max_kv_size={size}", lambda: RotatingKVCache(size, KEPT_TOKENS)
    return None


def members_of(cache: Any) -> tuple[Any, ...]:
    """The caches of one layer in a list of them, mlx-lm's or ours; () for anything else."""
    if isinstance(cache, CacheList):
        return tuple(cache.caches)
    return cache.members if isinstance(cache, SeveralCaches) else ()


def states_in(cache: Any) -> list[Any]:
    """The states, mlx-lm's or ours, that something is or lists; [] where it is no cache."""
    return [own for own in (cache, *members_of(cache)) if isinstance(own, ArraysCache)]


def lone_states(arrays: Seq[Any], lengths: mx.array | None) -> Any:
    """States as mlx-lm keeps them; what a model makes of them is in ``cache`` of it.

    Args:
        arrays: [rows, ...] each, or None.
        lengths: [rows], new tokens of each row; None: all.
    """
    own = ArraysCache(len(arrays))
    # ``advance`` subtracts from the handle that it finds.
    own.cache, own.lengths = list(arrays), copy.copy(lengths)
    return own


def _members(own: Any) -> Iterator[Any]:
    """The caches in a list of them; a cache that is none is its own only one."""
    if type(own) is CacheList:
        for member in own.caches:
            yield from _members(member)
    else:
        yield own


def kind_of(own: Any) -> str:
    """What one of mlx-lm's caches keeps, in a word; "" of classes that are not mlx-lm's own."""
    return _WORDS.get(type(own), "")


def own_leaves(caches: Seq[Any]) -> list[Any]:
    """mlx-lm's caches of a model's layers, lists of them taken apart: as ``pool.layers`` are."""
    return [member for own in caches for member in _members(own)]


def stand_for(own: Any) -> OwnCaches:
    """What stands for one cache of mlx-lm's, for all slots."""
    return _stand(own, 0)


def _stand(own: Any, start: int) -> OwnCaches:
    """What stands for one of the model's caches; ``start`` is where quantized ones begin."""
    if type(own) is CacheList:
        return SeveralCaches(*(_stand(member, start) for member in own.caches))
    if type(own) is QuantizedKVCache and start:
        return LateQuantizedSlots(own.bits, own.group_size, start)
    return _KINDS[type(own)](own)


def model_name(model: Any) -> str:
    """The architecture that a model says it is, else the name of its class."""
    return str(getattr(model, "model_type", type(model).__name__))
