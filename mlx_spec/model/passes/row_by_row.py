"""``RowByRow``: one row a call, for models that take their position as one number.

``offset`` is then a Python int and the caches are bound to that row alone, as if it ran by itself:
what a model makes of it (``range(offset, ...)``, a scale that depends on the length, a mask of its
own) is what it makes in mlx-lm.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from mlx_spec.model.passes.apart import Apart
from mlx_spec.model.passes.form import Outputs
from mlx_spec.model.rows import Rows


class RowByRow:
    """The rows of a pass one after the other.

    Args:
        parts: what takes each row through the model.
    """

    def __init__(self, parts: Apart) -> None:
        self._parts = parts

    def forward(self, rows: Rows) -> Outputs:
        """A call a row.

        Raises:
            ValueError: the host does not know where the rows stand.
        """
        if rows.at is None:
            raise ValueError(
                f"[RowByRow.forward] {len(rows.tokens)} rows, positions not known to the host"
            )
        return self._parts.forward([_one(rows, row, start) for row, start in enumerate(rows.at)])

    def commit(self, kept: mx.array | None) -> None:
        """Row by row too."""
        self._parts.commit(kept)


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
