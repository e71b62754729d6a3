"""Packed passes: a model is given tokens, any number of each row, instead of a rectangle.

Rows that bring different numbers of new tokens leave holes in the rectangle of a pass. Dense layers
cost as much for a hole as for a token, so a packed pass gives the model M tokens as rows of one,
each at its own position (``TokenPacking``). The caches are bound to the rectangle as ever; what
stands between them and the model (``PackedRows``) spreads what is written over it, and what asks
over it as well, and takes the answers back::

    rectangle  a b c     packed  a b c d e f .     places  0 1 2 3 6 7 0
               d . .     (M = 7: one token more    index   0 1 2   of each place its token, of a
               e f .      than there are)                  3 3 3   hole the row's last one: garbage
                                                           4 5 5   behind the row's end

    keys and values [M, H, 1, D]  -- index -->  [B, H, N, D] written, [B, H, L, D] read
    queries         [M, H, 1, D]  -- index -->  [B, H, N, D] attend  -- places -->  [M, H, 1, D]

Tokens beyond those that there are (M may be cheaper than a smaller number) are copies of the first
one: no place takes them, so nothing of them is written or read.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_map

from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.several import OwnCaches, leaves, with_leaves
from mlx_spec.errors import UnsupportedModel


@dataclass(frozen=True, eq=False)
class TokenPacking:
    """Which tokens of a pass of B rows are computed, of the rectangle of N tokens each.

    Attributes:
        places: [M] int32, where each token stands in the rectangle, read row by row.
        index: [B, N] int32, the token at each place; where a row has none there, its last one.
        rows: whose each of the M tokens is, as numbers.
    """

    places: mx.array
    index: mx.array
    rows: tuple[int, ...]

    @classmethod
    def of(cls, counts: Seq[int], tokens: int) -> TokenPacking:
        """Of rows that bring so many tokens each, at least one, ``tokens`` in all or more."""
        width, places, index, rows = max(counts), list[int](), list[list[int]](), list[int]()
        for row, count in enumerate(counts):
            first = len(places)
            index.append([first + min(column, count - 1) for column in range(width)])
            places += range(row * width, row * width + count)
            rows += [row] * count
        more = tokens - len(places)
        return cls(
            mx.array(places + [0] * more, mx.int32),
            mx.array(index, mx.int32),
            (*rows, *[0] * more),
        )

    def packed(self, rectangle: mx.array) -> mx.array:
        """[M, ...] of [B, N, ...]."""
        return mx.take(rectangle.flatten(0, 1), self.places, axis=0)

    def spread(self, tokens: mx.array) -> mx.array:
        """[B, N, ...] of [M, ...]."""
        return mx.take(tokens, self.index, axis=0)


class PackedRows:
    """One layer's cache, bound to a rectangle, as a model sees it that is given its tokens.

    Args:
        layer: the cache; what models ask of it beside the below is answered by itself.
        packing: the tokens.
        offset: [M] int32, the position of each.
    """

    def __init__(self, layer: LayerCache, packing: TokenPacking, offset: mx.array) -> None:
        vars(self).update(_layer=layer, _packing=packing, _offset=offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._layer, name, value)

    @property
    def offset(self) -> mx.array:
        """[M] int32: each token's own position."""
        offset: mx.array = self._offset
        return offset

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """The rectangle's, for :meth:`attend`."""
        mask: mx.array | str | None = self._layer.make_mask(
            self._layer.span.width, return_array, window_size
        )
        return mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write [M, H, 1, D] where the rectangle's are; return what its rows read."""
        return self._layer.update_and_fetch(self._rectangle(keys), self._rectangle(values))

    def attend(
        self, attention: Callable[..., mx.array], queries: mx.array, *read: Any, **more: Any
    ) -> mx.array:
        """What ``attention`` gives for the rectangle's queries, of the packed ones [M, H, 1, D].

        Args:
            attention: as mlx-lm's function of that name.
            queries: of all tokens.
            read: what :meth:`update_and_fetch` returned.
            more: the other arguments of ``attention``, less the cache.

        Raises:
            UnsupportedModel: the mask is none of the rectangle's.
        """
        self._check(more.get("mask"))
        out = attention(self._rectangle(queries), *read, cache=self._layer, **more)
        _, heads, _, dims = out.shape
        packed: mx.array = self._packing.packed(out.swapaxes(1, 2).flatten(2))
        return packed.reshape(-1, heads, 1, dims)

    def _rectangle(self, new: mx.array) -> mx.array:
        """[B, H, N, D] of [M, H, 1, D]."""
        tokens, heads, _, dims = new.shape
        # As one stretch of numbers a token, which is copied as such.
        spread: mx.array = self._packing.spread(new.reshape(tokens, heads * dims))
        return mx.unflatten(spread, -1, (heads, dims)).swapaxes(1, 2)

    def _check(self, mask: Any) -> None:
        """Without a mask, or with one of another width, tokens would see what is behind them."""
        span = self._layer.span
        if isinstance(mask, mx.array):
            fits = mask.ndim > 2 and mask.shape[-2] == span.width and mask.shape[0] == span.count
        else:
            fits = span.uniform and (mask == "causal" or span.width == 1)
        if not fits:
            shape = getattr(mask, "shape", mask)
            raise UnsupportedModel(
                f"[PackedRows.attend] a mask {shape} for {span.count} rows of {span.width} tokens"
            )


class FannedRows(PackedRows):
    """The same where a layer's code reads tokens as rows of their own: keys and values are read
    once for each token, as ``TokenRows`` does with all of the rectangle."""

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array:
        """[M, 1, 1, keys] booleans, with an axis more where masks are grouped."""
        mask: mx.array = self._layer.make_mask(self._layer.span.width, True, window_size)
        # All axes between rows and tokens are of one.
        rows: mx.array = self._packing.packed(mask.reshape(mask.shape[0], *mask.shape[-2:]))
        return rows.reshape(len(rows), *[1] * (mask.ndim - 2), rows.shape[-1])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write [M, H, 1, D]; return each row's keys and values once for each of its tokens."""
        return self._fanned(super().update_and_fetch(keys, values))

    def keys_and_values(self) -> Any:
        """What attention reads, for layers that share it."""
        return self._fanned(self._layer.keys_and_values())

    def _fanned(self, read: Any) -> Any:
        rows = mx.array(self._packing.rows, mx.int32)
        return tree_map(lambda array: mx.take(array, rows, axis=0), read)


def as_packed_rows(
    cache: OwnCaches, packing: TokenPacking, offset: mx.array, kind: type[PackedRows] = PackedRows
) -> OwnCaches:
    """A bound cache, or a list of them, as a model sees it whose rows are the tokens of a pass."""
    own = (cast("LayerCache", kind(leaf, packing, offset)) for leaf in leaves(cache))
    return with_leaves(cache, own)
