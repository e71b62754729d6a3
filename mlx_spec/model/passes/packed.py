"""``PackedPass``: M tokens of a pass as M rows of one token, any number of each row.

For passes that bring a ``TokenPacking``, of models whose attention can be told of it (``packs``).
To the model it is a step of plain decoding, of M rows at positions of their own; where its code
calls mlx-lm's attention function, queries are put in the rectangle that the caches know and taken
out again (``cache.packed_rows``). Models that are given tokens as rows anyway (``TokensAsRows``)
read keys and values once for each token, of M instead of all.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layer_view import PackedView, as_views
from mlx_spec.cache.packed_rows import PackedQueries, PackedRows, packed_now
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.token_rows import FannedRows
from mlx_spec.model.attention import BoundAttention
from mlx_spec.model.hidden import call_model
from mlx_spec.model.passes.form import Outputs, PassForm
from mlx_spec.model.rows import Rows


class PackedPass:
    """One call of the model, whose rows are the tokens that there are.

    Args:
        model: one that ``packs``.
        pool: its slots.
        form: as the model's other passes have.
        grouped: as for ``Whole``.
    """

    def __init__(self, model: Any, pool: KVCachePool, form: PassForm, grouped: bool) -> None:
        self._model, self._pool, self._grouped = model, pool, grouped
        self._kind: type[PackedView] = FannedRows if form.tokens_as_rows else PackedRows
        self._attention = None if form.tokens_as_rows else BoundAttention(model)

    def forward(self, rows: Rows) -> Outputs:
        """Logits [M, 1, vocabulary], and hidden states [B, N, D] as of any other pass.

        Raises:
            ValueError: the rows bring no packing.
        """
        packing = rows.packing
        if packing is None:
            raise ValueError(f"[PackedPass.forward] {len(rows.tokens)} rows without a packing")
        if self._attention is not None:
            self._attention.hold()
        span = rows.span(grouped=self._grouped)
        self._pool.bind(span)
        offset = packing.packed(span.positions)
        kind = self._kind
        caches = [
            as_views(own, lambda layer: kind(layer, packing, offset)) for own in self._pool.caches
        ]
        tokens = packing.packed(rows.tokens)[:, None]
        with packed_now(PackedQueries(packing, span)) if self._attention else nullcontext():
            logits, *hidden = call_model(self._model, tokens, caches)
        span.ran()
        return [logits, *(packing.spread(states[:, 0]) for states in hidden)]

    def commit(self, kept: mx.array | None) -> None:
        """As the pool does."""
        self._pool.commit(kept)
