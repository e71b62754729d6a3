"""``TokenRows``: a layer's cache as a model sees it that is given each new token as a row.

For models that compute one new token in another way than several: verified as rows of one token,
all of them are computed as plain decoding does, in one call. The cache itself is bound to the pass
as ever; this stands between it and the model::

    the model's rows         b c | f g        the cache's     row 0   a | b c
    (one token each)         0 0 | 1 1                        row 1   d e | f g

    keys of b, c, f, g  -->  written as those of two rows of two tokens
    keys to be read     <--  row 0's twice and row 1's twice, each with its own mask

Of a packed pass (``packing``) only some tokens of the rectangle are rows: ``FannedRows``.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlx_spec.cache.layer_view import LayerView, PackedView, as_views
from mlx_spec.cache.packing import spread_heads
from mlx_spec.cache.several import OwnCaches


class TokenRows(LayerView):
    """One layer's cache, bound to a pass of B rows of N tokens, as M = B * N rows of one."""

    @property
    def offset(self) -> mx.array:
        """[M] int32: each token's own position."""
        return self._of_tokens(self._layer.span.positions)

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array:
        """[M, 1, 1, keys] booleans, with an axis more where masks are grouped."""
        mask: mx.array = self._layer.make_mask(self._layer.span.width, True, window_size)
        # All axes between rows and tokens are of one.
        rows = self._of_tokens(mask.reshape(mask.shape[0], *mask.shape[-2:]))
        return rows.reshape(len(rows), *[1] * (mask.ndim - 2), rows.shape[-1])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write [M, H, 1, D]; return each row's keys and values once for each of its tokens."""
        return self._fanned(self._layer.update_and_fetch(self._spread(keys), self._spread(values)))

    def keys_and_values(self) -> Any:
        """What attention reads, for layers that share it."""
        return self._fanned(self._layer.keys_and_values())

    def _of_tokens(self, rectangle: mx.array) -> mx.array:
        """[M, ...] of [B, N, ...]."""
        return rectangle.flatten(0, 1)

    def _spread(self, new: mx.array) -> mx.array:
        """[M, H, 1, D] as [B, H, N, D]."""
        width = self._layer.span.width
        return new.reshape(-1, width, new.shape[1], new.shape[3]).swapaxes(1, 2)

    def _fanned(self, read: Any) -> Any:
        width = self._layer.span.width
        return tree_map(lambda array: mx.repeat(array, width, axis=0), read)


class FannedRows(PackedView, TokenRows):
    """The same of a packed pass."""

    def _of_tokens(self, rectangle: mx.array) -> mx.array:
        packed: mx.array = self._packing.packed(rectangle)
        return packed

    def _spread(self, new: mx.array) -> mx.array:
        return spread_heads(new, self._packing.index)

    def _fanned(self, read: Any) -> Any:
        rows = self._packing.whose
        return tree_map(lambda array: mx.take(array, rows, axis=0), read)


def as_token_rows(cache: OwnCaches) -> OwnCaches:
    """A bound cache, or a list of them, as a model sees it whose rows are tokens."""
    return as_views(cache, TokenRows)
