"""``Apart``: parts of a pass, some rows each, that go through the model in calls of their own.

Each part has a view of the pool, whose caches remember its call until it is committed::

    pool.layers     a a a a     arrays go from call to call: part 1 finds what part 0 has written
    view of part 0  v v v v --> forward --> arrays back     commit: arrays there and back once more
    view of part 1  v v v v ----------------> forward --> arrays back
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.passes.form import ModelPass, Outputs, joined
from mlx_spec.model.passes.whole import Whole
from mlx_spec.model.rows import Rows

Inner = Callable[[Any, KVCachePool, bool], ModelPass]


class Apart:
    """The parts of a pass one after the other.

    Args:
        model, pool, grouped: as for ``Whole``.
        inner: the form of each part's pass.
    """

    def __init__(
        self, model: Any, pool: KVCachePool, grouped: bool = False, inner: Inner = Whole
    ) -> None:
        self._model, self._pool, self._grouped, self._inner = model, pool, grouped, inner
        self._last: list[tuple[slice, KVCachePool, ModelPass]] = []  # rows, their view and pass

    def forward(self, parts: Seq[Rows]) -> Outputs:
        """Of the parts' rows, in their order."""
        self._last, outputs = [], []
        done = 0
        for part in parts:
            view = self._pool.view()
            own = self._inner(self._model, view, self._grouped)
            outputs.append(own.forward(replace(part, opens=part.opens and done == 0)))
            self._pool.take_back(view)
            rows = slice(done, done + len(part.tokens))
            self._last.append((rows, view, own))
            done = rows.stop
        return joined(outputs, axis=0)

    def commit(self, kept: mx.array | None) -> None:
        """Part by part too: each view's caches know of their own rows."""
        for rows, view, own in self._last:
            self._pool.lend(view)
            own.commit(None if kept is None else kept[rows])
            self._pool.take_back(view)
        self._last = []
