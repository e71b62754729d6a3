"""``LayerView``: what stands between a layer's cache and a model that is given other rows.

The cache is bound to its pass as ever, a rectangle. A kind of view answers what the model asks with
other rows in mind (``token_rows``, ``packed_rows``); all else is the cache's own to answer, and
what the model sets is set there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.packing import TokenPacking
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


class PackedView(LayerView):
    """A view of a cache whose pass is packed: the model is given its tokens alone.

    Args:
        layer: the cache, bound to the rectangle.
        packing: the tokens.
        offset: [M] int32, the position of each.
    """

    def __init__(self, layer: LayerCache, packing: TokenPacking, offset: mx.array) -> None:
        super().__init__(layer, _packing=packing, _offset=offset)

    @property
    def offset(self) -> mx.array:
        """[M] int32: each token's own position."""
        offset: mx.array = self._offset
        return offset


def as_views(cache: OwnCaches, view: Callable[[LayerCache], LayerView]) -> OwnCaches:
    """A bound cache, or a list of them, as a model sees it whose rows are others."""
    return with_leaves(cache, (cast("LayerCache", view(own)) for own in leaves(cache)))
