"""``Whole``: the rectangle in one call of the model."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.hidden import call_model
from mlx_spec.model.passes.form import Outputs
from mlx_spec.model.rows import Rows


class Whole:
    """All rows and tokens of a pass at once.

    Args:
        model: any model that takes an array for its caches' ``offset``.
        pool: its slots.
        grouped: attention masks need an axis for groups of query heads (``Span.grouped``).
    """

    def __init__(self, model: Any, pool: KVCachePool, grouped: bool = False) -> None:
        self._model, self._pool, self._grouped = model, pool, grouped

    def forward(self, rows: Rows) -> Outputs:
        """One call."""
        span = rows.span(grouped=self._grouped)
        self._pool.bind(span)
        outputs = call_model(self._model, rows.tokens, self._pool.caches)
        span.ran()
        return outputs

    def commit(self, kept: mx.array | None) -> None:
        """As the pool does."""
        self._pool.commit(kept)
