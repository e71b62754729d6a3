"""``BeginnersApart``: rows that have read nothing yet go in a call of their own.

Some models that fold tokens into a state compute a text's first token in another way than from a
state of zeros, and ask one cache for all rows whether there is one. Prompts that are read together
all begin; only a prompt of one token begins to decode beside rows that are in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import mlx.core as mx

from mlx_spec.cache.pool import KVCachePool
from mlx_spec.model.passes.apart import Apart, Inner
from mlx_spec.model.passes.form import ModelPass, Outputs
from mlx_spec.model.rows import Rows


class BeginnersApart:
    """A pass of which some rows begin in parts, neighbours that are alike in one; others at once.

    Args:
        model, pool, grouped: as for ``Whole``.
        inner: the form of a pass of rows that are alike.
    """

    def __init__(self, model: Any, pool: KVCachePool, grouped: bool, inner: Inner) -> None:
        self._together = inner(model, pool, grouped)
        self._apart = Apart(model, pool, grouped, inner)
        self._last: ModelPass | Apart = self._together

    def forward(self, rows: Rows) -> Outputs:
        """As many calls as there are runs of rows that are alike."""
        if not any(rows.begins) or rows.uniform:
            self._last = self._together
            return self._together.forward(rows)
        self._last = self._apart
        return self._apart.forward(list(_alike(rows)))

    def commit(self, kept: mx.array | None) -> None:
        """Of the last pass."""
        self._last.commit(kept)


def _alike(rows: Rows) -> Iterator[Rows]:
    """The rows in runs that begin, or do not."""
    begin = 0
    for begins, run in groupby(rows.begins):
        end = begin + len(list(run))
        part = slice(begin, end)
        new = replace(
            rows,
            tokens=rows.tokens[part],
            starts=rows.starts[part],
            first=rows.first + begin,
            counts=None if rows.counts is None else rows.counts[part],
            at=None if rows.at is None else rows.at[part],
            since=max(rows.since, 1),
            begins=(),
        )
        if begins:
            width = rows.tokens.shape[1]
            new = replace(new, limit=width, uniform=True, at=(0,) * (end - begin), since=0)
        yield new
        begin = end
