"""``TokenByToken``: one call for each token of all rows, for models that fold tokens into a state.

A state after several tokens cannot be taken back to one in between; after each token it can be
kept, and what computes it is what decodes plainly, to the last bit. So a pass that may be cut, or
where rows are padded, is described token by token. The caches hold the states after each one until
``commit`` chooses, and those of rows past their ``counts`` stay::

    counts   token 0   1   2          prompts, whose tokens all stay, go in one call
    row 0      a       b   c    3
    row 1      a       .   .    1     .  computed, and dropped
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.passes.form import Outputs, joined
from mlx_spec.model.passes.whole import Whole
from mlx_spec.model.rows import Rows


class TokenByToken:
    """The tokens of a pass one after the other, as far as they must be.

    Args:
        model, pool, grouped: as for ``Whole``.
    """

    def __init__(self, model: Any, pool: KVCachePool, grouped: bool = False) -> None:
        self._whole = Whole(model, pool, grouped)

    def forward(self, rows: Rows) -> Outputs:
        """As many calls as it needs, each further one of the same pass (``Rows.opens``)."""
        if rows.tokens.shape[1] == 1 or not (rows.tentative or rows.counts is not None):
            return self._whole.forward(rows)
        return joined((self._whole.forward(part) for part in _tokens(rows)), axis=1)

    def commit(self, kept: mx.array | None) -> None:
        """Of all tokens together."""
        self._whole.commit(kept)


def _tokens(rows: Rows) -> Iterator[Rows]:
    width = rows.tokens.shape[1]
    for token in range(width):
        yield replace(
            rows,
            tokens=rows.tokens[:, token : token + 1],
            starts=rows.starts + token,
            limit=rows.limit - width + token + 1,
            counts=None if rows.counts is None else (rows.counts > token).astype(mx.int32),
            at=None if rows.at is None else tuple(at + token for at in rows.at),
            opens=rows.opens and token == 0,
            since=rows.since + token,
        )
