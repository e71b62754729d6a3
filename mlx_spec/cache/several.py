"""``SeveralCaches``: where one layer of a model has several caches (mlx-lm's ``CacheList``).

It is what the model gets, and no kind of cache: the pool takes such lists apart (``leaves``) and
loops over their members, so that a state and keys and values in one layer are each saved, moved,
committed and counted as their own kinds do::

    the model's     [ CacheList(ArraysCache, KVCache), CacheList(ArraysCache, KVCache) ]
    pool.caches     [ SeveralCaches(state, dense),     SeveralCaches(state, dense)     ]
    pool.layers     [ state, dense,                    state, dense                    ]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from mlx_spec.cache.layer import LayerCache


class SeveralCaches:
    """The caches of one layer, in the model's own order; lists in lists are possible."""

    def __init__(self, *members: OwnCaches) -> None:
        self.members = members

    def __getitem__(self, place: int) -> OwnCaches:
        return self.members[place]

    def __len__(self) -> int:
        return len(self.members)


OwnCaches: TypeAlias = "LayerCache | SeveralCaches"


def leaves(cache: OwnCaches) -> Iterator[LayerCache]:
    """The members of a list, of lists in it too; a cache that is none is its own only one."""
    if isinstance(cache, SeveralCaches):
        for member in cache.members:
            yield from leaves(member)
    else:
        yield cache


def with_leaves(cache: OwnCaches, own: Iterator[LayerCache]) -> OwnCaches:
    """The same list with other members, taken from ``own`` in the order of ``leaves``."""
    if isinstance(cache, SeveralCaches):
        return SeveralCaches(*(with_leaves(member, own) for member in cache.members))
    return next(own)
