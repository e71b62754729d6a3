"""``LayerView``: what stands between a layer's cache and a model that is given other rows.

The cache is bound to its pass as ever, a rectangle. A kind of view answers what the model asks with
other rows in mind (``token_rows``, ``packed_rows``); all else is the cache's own to answer, and
what the model sets is set there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.several import OwnCaches, leaves, with_leaves


class LayerView:
    """A view of one layer's cache.

    Args:
        layer: the cache.
        own: what a kind of view keeps beside it.
    """

    def __init__(self, layer: LayerCache, **own: Any) -> None:
        vars(self).update(_layer=layer, **own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._layer, name, value)

    @property
    def beneath(self) -> LayerCache:
        """The cache itself."""
        layer: LayerCache = self._layer
        return layer


def as_views(cache: OwnCaches, view: Callable[[LayerCache], LayerView]) -> OwnCaches:
    """A bound cache, or a list of them, as a model sees it whose rows are others."""
    return with_leaves(cache, (cast("LayerCache", view(own)) for own in leaves(cache)))
