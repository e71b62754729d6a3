"""``Rows``: the input of one pass, whatever form it takes through the model."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.cache.span import Span


@dataclass(frozen=True)
class Rows:
    """The input of one forward pass.

    Attributes:
        tokens: [B, N] int, new tokens, right-padded with anything.
        starts: [B] int32, position of each row's first new token.
        limit: upper bound of every row's start + N, known to the host.
        first: slot of the first row; the B rows are contiguous.
        uniform: every start is ``limit - N`` exactly (then no mask is needed).
        counts: [B] int32, how many of its N tokens are a row's own; None where all are.
        at: the starts as numbers, where the host knows them; always so if ``uniform``.
        alone: there is one row, and the model is to get its position as a number.
        tentative: guesses are among the tokens, so that ``commit`` says what stays.
        opens: it is the first call of its pass, and not one more of the same rows.
        since: no row starts before that position, as far as the host knows.
        begins: which rows start at 0, where some do beside others; empty where none does.
        packing: the tokens that are computed, where not all of the rectangle are.
        chosen: [C] int32, those of the computed tokens, in their order, whose logits are wanted;
            None: all.
    """

    tokens: mx.array
    starts: mx.array
    limit: int
    first: int = 0
    uniform: bool = False
    counts: mx.array | None = None
    at: tuple[int, ...] | None = None
    alone: bool = False
    tentative: bool = False
    opens: bool = True
    since: int = 0
    begins: tuple[bool, ...] = ()
    packing: TokenPacking | None = None
    chosen: mx.array | None = None

    def __post_init__(self) -> None:
        if self.uniform and self.at is None:
            count, width = self.tokens.shape
            object.__setattr__(self, "at", (self.limit - width,) * count)
        if self.at:
            object.__setattr__(self, "since", min(self.at))

    @property
    def computed(self) -> int:
        """Tokens that the pass computes."""
        return self.tokens.size if self.packing is None else self.packing.size

    def span(self, *, grouped: bool = False) -> Span:
        """What a pass over all of them reads and writes."""
        count, width = self.tokens.shape
        start = self.at[0] if self.alone and self.at else None
        return Span(
            self.first,
            count,
            self.starts,
            width,
            self.limit,
            self.uniform,
            grouped,
            self.counts,
            start,
            self.tentative,
            self.opens,
            self.since,
        )
