"""How many bytes of caches rows take, and which rows fit together. Counts only; knows no mlx.

Slots are as long as the longest row, so what R rows take is R times what the longest does, rounded
up to whole blocks. That is what is compared with the limit, not the sum of lengths, which would
promise memory that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from mlx_spec.cache.cost import RowCost


@dataclass(frozen=True)
class KVBudget:
    """A limit in bytes on the caches of all rows.

    Attributes:
        cost: bytes of one row by its tokens, target and draft together.
        limit: most bytes.
        block_size: tokens that are accounted together.
        row_bytes: bytes that a row takes beside its caches, while a step runs.
    """

    cost: RowCost
    limit: int
    block_size: int = 16
    row_bytes: int = 0

    def nbytes(self, tokens: Seq[int]) -> int:
        """Bytes of rows that may come to hold ``tokens`` each: slots, and what a step takes."""
        return self.slot_bytes(tokens) + len(tokens) * self.row_bytes

    def slot_bytes(self, tokens: Seq[int]) -> int:
        """Bytes of their slots alone."""
        if not tokens:
            return 0
        blocks = -(-max(tokens) // self.block_size)
        return len(tokens) * self.cost.nbytes(blocks * self.block_size)

    def left(self, tokens: Seq[int]) -> int:
        """Bytes that such rows leave; below 0 where they do not fit."""
        return self.limit - self.nbytes(tokens)

    def most_rows(self, tokens: int) -> int:
        """How many rows of at most ``tokens`` each fit; of rows that take nothing, any number."""
        return self.limit // max(1, self.nbytes([tokens]))

    def explain(self, tokens: Seq[int]) -> str:
        """The numbers behind a refusal."""
        return (
            f"{max(tokens)} tokens need {self.nbytes(tokens)} bytes of K/V and of a step, "
            f"{self.limit} are there (memory_limit)"
        )
