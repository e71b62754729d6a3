"""``TokenRows``: a layer's cache as a model sees it that is given each new token as a row.

For models that compute one new token in another way than several: verified as rows of one token,
all of them are computed as plain decoding does, in one call. The cache itself is bound to the pass
as ever; this stands between it and the model::

    the model's rows         b c | f g        the cache's     row 0   a | b c
    (one token each)         0 0 | 1 1                        row 1   d e | f g

    keys of b, c, f, g  -->  written as those of two rows of two tokens
    keys to be read     <--  row 0's twice and row 1's twice, each with its own mask
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_map

from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.several import OwnCaches, leaves, with_leaves


class TokenRows:
    """One layer's cache, bound to a pass of B rows of N tokens, as B * N rows of one.

    Args:
        layer: the cache; what models ask of it beside the below is answered by itself.
    """

    def __init__(self, layer: LayerCache) -> None:
        vars(self)["_layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._layer, name, value)

    @property
    def offset(self) -> mx.array:
        """[B * N] int32: each token's own position."""
        positions: mx.array = self._layer.span.positions.reshape(-1)
        return positions

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array:
        """[B * N, 1, 1, keys] booleans, with an axis more where masks are grouped."""
        span = self._layer.span
        mask = self._layer.make_mask(span.width, True, window_size)
        keys = mask.shape[-1]
        # All axes between rows and tokens are of one.
        rows: mx.array = mask.reshape(-1, *[1] * (mask.ndim - 2), keys)
        return rows

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write [B * N, H, 1, D]; return each row's keys and values once for each of its tokens."""
        width = self._layer.span.width
        together = (_together(keys, width), _together(values, width))
        return self._fanned(self._layer.update_and_fetch(*together))

    def keys_and_values(self) -> Any:
        """What attention reads, for layers that share it."""
        return self._fanned(self._layer.keys_and_values())

    def _fanned(self, read: Any) -> Any:
        width = self._layer.span.width
        return tree_map(lambda array: mx.repeat(array, width, axis=0), read)


def as_token_rows(cache: OwnCaches) -> OwnCaches:
    """A bound cache, or a list of them, as a model sees it whose rows are tokens."""
    return with_leaves(cache, (cast("LayerCache", TokenRows(own)) for own in leaves(cache)))


def _together(new: mx.array, width: int) -> mx.array:
    """[B * N, H, 1, D] as [B, H, N, D]."""
    return new.reshape(-1, width, new.shape[1], new.shape[3]).swapaxes(1, 2)
