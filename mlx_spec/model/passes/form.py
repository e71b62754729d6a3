"""``PassForm``: how a pass must go through a model; ``ModelPass``: what every form does.

A pass is a rectangle: B rows, each at its own position, of N new tokens. Most of mlx-lm's models
take it in one call. Some take *one number* as the position of all rows, so that rows are read one
by one; some keep a state that cannot be told where a row ends, so that tokens are::

                 whole       rows apart     tokens apart     both
    3 rows of    +-----+     +-----+        +-+-+-+          +-+-+-+
    3 tokens     |     |     +-----+        | | | |          +-+-+-+
                 |     |     +-----+        | | | |          +-+-+-+
                 +-----+     +-----+        +-+-+-+          +-+-+-+
    calls        1           B              N                B x N

The rest of the engine sees no difference: rows are batched by the scheduler, tokens chosen and
drafts accepted for all of them together. Only the host must know where each row stands to say so
in a number, so that the steps of such models are taken in turn (``decoding.drivers``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import mlx.core as mx

from mlx_spec.model.rows import Rows


@dataclass(frozen=True)
class PassForm:
    """How a pass must go through a model.

    Attributes:
        rows_apart: one row a call, its position a number.
        tokens_apart: one token a call, of all rows.
        beginners_apart: rows that begin in a call of their own.
        tokens_as_rows: one call, in which every token that may be a guess is a row.
    """

    rows_apart: bool = False
    tokens_apart: bool = False
    beginners_apart: bool = False
    tokens_as_rows: bool = False

    @property
    def needs_host(self) -> bool:
        """Whether rows must say where they stand in numbers (``Rows.at``)."""
        return self.rows_apart

    @property
    def words(self) -> str:
        """Its name for users; empty for the whole rectangle."""
        parts = ["row by row"] * self.rows_apart + ["token by token"] * self.tokens_apart
        return " and ".join(parts)

    @property
    def cost(self) -> str:
        """What is slow about it, and why, in words; empty where nothing is."""
        rows = (
            "row by row: its code takes one position for all rows, so that a step of B rows is B "
            "calls of the model, and a batch hardly faster than its rows one after the other"
        )
        tokens = (
            "token by token: its states cannot be taken back to the middle of a call, so that a "
            "draft of K tokens is verified in K + 1 calls of the model and does not make it faster"
        )
        return "; ".join([rows] * self.rows_apart + [tokens] * self.tokens_apart)


WHOLE = PassForm()

Outputs: TypeAlias = list[mx.array]
"""Of a pass: logits [B, N, vocabulary], and hidden states [B, N, D] where those are asked for."""


def joined(parts: Iterable[Outputs], axis: int) -> Outputs:
    """Outputs of several calls as those of one pass: of more rows (0), or of more tokens (1)."""
    return [mx.concatenate(arrays, axis=axis) for arrays in map(list, zip(*parts, strict=True))]


class ModelPass(Protocol):
    """A form at work on one model and its slots."""

    def forward(self, rows: Rows) -> Outputs:
        """Of the new tokens, which the caches hold from then on."""
        ...

    def commit(self, kept: mx.array | None) -> None:
        """Of the last pass keep each row's first ``kept`` [B] tokens; None: all of them."""
        ...
