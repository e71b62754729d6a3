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

A hole among queries costs attention what a token does, so neighbouring rows of as many tokens ask
together and others apart (``TokenPacking.runs``).
Tokens beyond those that there are (M may be cheaper than a smaller number) are copies of the first
one: no place takes them, so nothing of them is written or read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layer_view import PackedView
from mlx_spec.cache.packing import QueryRun, TokenPacking, spread_heads
from mlx_spec.cache.span import Span
from mlx_spec.errors import UnsupportedModel


class PackedRows(PackedView):
    """One layer's cache, bound to a rectangle, as a model sees it that is given its tokens."""

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """The rectangle's, for ``PackedQueries.attend``."""
        apart = len(self._packing.runs) > 1  # each of them needs its part of it
        mask: mx.array | str | None = self._layer.make_mask(
            self._layer.span.width, return_array or apart, window_size
        )
        return mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write [M, H, 1, D] where the rectangle's are; return what its rows read."""
        index = self._packing.index
        return self._layer.update_and_fetch(spread_heads(keys, index), spread_heads(values, index))


@dataclass(frozen=True)
class PackedQueries:
    """What is done with queries while a packed pass goes through a model (``packed_now``).

    Attributes:
        packing: its tokens.
        span: its rectangle.
    """

    packing: TokenPacking
    span: Span
    _made: dict[int, list[Any]] = field(default_factory=dict)

    def attend(
        self,
        attention: Callable[..., mx.array],
        queries: mx.array,
        *read: Any,
        cache: Any,
        **more: Any,
    ) -> mx.array:
        """What ``attention`` gives for the rectangle's queries, of the packed ones [M, H, 1, D].

        Args:
            attention: as mlx-lm's function of that name.
            queries: of all tokens.
            read: what ``PackedRows.update_and_fetch`` returned, of this layer or another.
            cache: whose that is, or None.
            more: the other arguments of ``attention``.

        Raises:
            UnsupportedModel: the mask is none of the rectangle's.
        """
        own = cache.beneath if isinstance(cache, PackedRows) else cache
        runs, order, masks = self.packing.runs, self.packing.order, self._masks(more.pop("mask"))
        if len(runs) > 1 and not all(isinstance(one, (mx.array, tuple)) for one in read):
            runs, order, masks = (self.packing.whole,), self.packing.places, masks[-1:]
        parts = []
        for run, mask in zip(runs, masks, strict=False):
            theirs = read if len(runs) == 1 else tuple(_of_rows(run, one) for one in read)
            asked = spread_heads(queries, run.index)
            out = attention(asked, *theirs, cache=own, mask=mask, **more)
            parts.append(out.swapaxes(1, 2).flatten(2).flatten(0, 1))
        joined = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        packed = mx.take(joined, order, axis=0)
        return packed.reshape(len(queries), queries.shape[1], 1, -1)

    def _masks(self, mask: Any) -> list[Any]:
        """Of each run of rows, and behind them of all; made once for all layers."""
        known = self._made.get(id(mask))
        if known is None:
            self._check(mask)
            runs = self.packing.runs
            apart = runs if len(runs) > 1 else ()
            parts = [mask[run.first : run.end, ..., : run.width, :] for run in apart]
            known = self._made[id(mask)] = [*parts, mask]  # which keeps it, and so its number
        return known

    def _check(self, mask: Any) -> None:
        """Without a mask, or with one of another width, tokens would see what is behind them."""
        span = self.span
        if isinstance(mask, mx.array):
            fits = mask.ndim > 2 and mask.shape[-2] == span.width and mask.shape[0] == span.count
        else:
            fits = span.uniform and (mask == "causal" or span.width == 1)
        if not fits:
            shape = getattr(mask, "shape", mask)
            raise UnsupportedModel(
                f"[PackedQueries.attend] a mask {shape} for {span.count} rows of {span.width} "
                "tokens"
            )


def _of_rows(run: QueryRun, read: Any) -> Any:
    """What some rows read of keys or values: an array, or several where they are of few bits."""
    if isinstance(read, tuple):
        return tuple(array[run.first : run.end] for array in read)
    return read[run.first : run.end]


_NOW: ContextVar[PackedQueries | None] = ContextVar("packed", default=None)


@contextmanager
def packed_now(queries: PackedQueries) -> Iterator[None]:
    """While it lasts a packed pass is described, in this thread."""
    before = _NOW.set(queries)
    try:
        yield
    finally:
        _NOW.reset(before)


def packed_queries(queries: mx.array, cache: Any) -> PackedQueries | None:
    """What takes queries of an attention call of ours, where they are those of a packed pass.

    A layer that reads another one's keys and values may have no cache at all.
    """
    now = _NOW.get()
    if now is None or not (cache is None or isinstance(cache, PackedRows)):
        return None
    return now if queries.shape[0] == now.packing.size else None
