"""``TokensAsRows``: a pass of B rows of N tokens as one of B * N rows of one token.

Some models compute one new token in another way than several (latent attention reads the latents
themselves for one, and expands all of them into heads for more). A draft that is verified in the
other way would be judged by numbers that round otherwise than those of plain decoding, and where
the context is long, expanding it for a few tokens takes longer than the rest of the pass. So what
may be guesses is read as plain decoding reads it, all at once; prompts go as they are.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.token_rows import as_token_rows
from mlx_spec.model.hidden import call_model
from mlx_spec.model.passes.form import Outputs
from mlx_spec.model.passes.whole import Whole
from mlx_spec.model.rows import Rows


class TokensAsRows:
    """One call, whose rows are tokens.

    Args:
        model, pool, grouped: as for ``Whole``; no layer of the pool folds tokens into a state.
    """

    def __init__(self, model: Any, pool: KVCachePool, grouped: bool = False) -> None:
        self._model, self._pool, self._grouped = model, pool, grouped
        self._whole = Whole(model, pool, grouped)

    def forward(self, rows: Rows) -> Outputs:
        """As rows unless it is a prompt's, or one token wide anyway."""
        count, width = rows.tokens.shape
        if width == 1 or (rows.uniform and not rows.tentative):
            return self._whole.forward(rows)
        self._pool.bind(rows.span(grouped=self._grouped))
        caches = [as_token_rows(cache) for cache in self._pool.caches]
        outputs = call_model(self._model, rows.tokens.reshape(-1, 1), caches)
        return [output.reshape(count, width, -1) for output in outputs]

    def commit(self, kept: mx.array | None) -> None:
        """As the pool does."""
        self._pool.commit(kept)
