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
        token_bytes: bytes beside caches of each token that a step verifies, while it runs.
    """

    cost: RowCost
    limit: int
    block_size: int = 16
    token_bytes: int = 0

    def nbytes(self, tokens: Seq[int], guesses: Seq[int] = ()) -> int:
        """Bytes of rows that may come to hold ``tokens`` each: slots, and what a step takes.

        Args:
            guesses: most draft tokens of each row's step; empty where there are none.
        """
        verified = len(tokens) + sum(guesses)
        return self.slot_bytes(tokens, guesses) + verified * self.token_bytes

    def positions(self, tokens: Seq[int], guesses: Seq[int] = ()) -> int:
        """How long their slots are: as the longest row, and whole blocks.

        A pass writes as far beyond each row as beyond the one with the most guesses, so a row that
        has left less room behind its end needs that more of it.
        """
        more = 2 * (max(guesses) - min(guesses)) if guesses else 0
        return -(-(max(tokens) + more) // self.block_size) * self.block_size

    def slot_bytes(self, tokens: Seq[int], guesses: Seq[int] = ()) -> int:
        """Bytes of their slots alone."""
        if not tokens:
            return 0
        return len(tokens) * self.cost.nbytes(self.positions(tokens, guesses))

    def left(self, tokens: Seq[int], guesses: Seq[int] = ()) -> int:
        """Bytes that such rows leave; below 0 where they do not fit."""
        return self.limit - self.nbytes(tokens, guesses)

    def most_rows(self, tokens: int, guesses: int = 0) -> int:
        """How many rows of at most ``tokens`` each fit; of rows that take nothing, any number."""
        return self.limit // max(1, self.nbytes([tokens], [guesses]))

    def explain(self, tokens: Seq[int], guesses: Seq[int] = ()) -> str:
        """The numbers behind a refusal."""
        return (
            f"{max(tokens)} tokens need {self.nbytes(tokens, guesses)} bytes of K/V and of a step, "
            f"{self.limit} are there (memory_limit)"
        )
