"""``RowByRow``: one row a call, for models that take their position as one number.

``offset`` is then a Python int and the caches are bound to that row alone, as if it ran by itself:
what a model makes of it (``range(offset, ...)``, a scale that depends on the length, a mask of its
own) is what it makes in mlx-lm. Each row has a view of the pool, whose caches remember that row's
call until it is committed::

    pool.layers    a a a a     arrays go from call to call: row 1 finds what row 0 has written
    view of row 0  v v v v --> forward --> arrays back     commit: arrays there and back once more
    view of row 1  v v v v ----------------> forward --> arrays back
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.passes.form import ModelPass
from mlx_spec.model.passes.whole import Whole
from mlx_spec.model.rows import Rows

Inner = Callable[[Any, KVCachePool, bool], ModelPass]


class RowByRow:
    """The rows of a pass one after the other.

    Args:
        model, pool, grouped: as for ``Whole``.
        inner: the form of one row's pass.
    """

    def __init__(
        self, model: Any, pool: KVCachePool, grouped: bool = False, inner: Inner = Whole
    ) -> None:
        self._model, self._pool, self._grouped, self._inner = model, pool, grouped, inner
        self._last: list[tuple[KVCachePool, ModelPass]] = []  # each row's view, and its pass

    def forward(self, rows: Rows) -> mx.array:
        """A call a row.

        Raises:
            ValueError: the host does not know where the rows stand.
        """
        if rows.at is None:
            raise ValueError(
                f"[RowByRow.forward] {len(rows.tokens)} rows, positions not known to the host"
            )
        self._last, logits = [], []
        for row, start in enumerate(rows.at):
            view = self._pool.view()
            one = self._inner(self._model, view, self._grouped)
            logits.append(one.forward(_one(rows, row, start)))
            self._pool.take_back(view)
            self._last.append((view, one))
        return mx.concatenate(logits)

    def commit(self, kept: mx.array | None) -> None:
        """Row by row too: each view's caches know of their own row."""
        for row, (view, one) in enumerate(self._last):
            self._pool.lend(view)
            one.commit(None if kept is None else kept[row : row + 1])
            self._pool.take_back(view)
        self._last = []


def _one(rows: Rows, row: int, start: int) -> Rows:
    """One row of a pass, at a position that is known."""
    part = slice(row, row + 1)
    return replace(
        rows,
        tokens=rows.tokens[part],
        starts=rows.starts[part],
        limit=start + rows.tokens.shape[1],
        first=rows.first + row,
        uniform=True,
        counts=None if rows.counts is None else rows.counts[part],
        at=(start,),
        alone=True,
        since=start,
    )
