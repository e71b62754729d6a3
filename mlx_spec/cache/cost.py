"""``RowCost``: bytes that one row's caches take, by the tokens that it holds. Knows no mlx."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class RowCost:
    """What a row takes: costs of layers add up to that of a model, and of two models.

    Attributes:
        fixed: bytes however many tokens there are (a recurrent state).
        per_token: bytes of each token (keys and values of full attention).
        capped: (most tokens, bytes of each) of what stops growing (a sliding window).
    """

    fixed: int = 0
    per_token: int = 0
    capped: tuple[tuple[int, int], ...] = ()

    def nbytes(self, tokens: int) -> int:
        """Bytes of a row, or of a stretch of one, that holds so many tokens."""
        windows = sum(each * min(tokens, most) for most, each in self.capped)
        return self.fixed + self.per_token * tokens + windows

    def __add__(self, other: RowCost) -> RowCost:
        capped: Counter[int] = Counter()
        for most, each in (*self.capped, *other.capped):
            capped[most] += each
        return RowCost(
            self.fixed + other.fixed,
            self.per_token + other.per_token,
            tuple(sorted(capped.items())),
        )
