"""Filters that few rows want: XTC, and how many tokens min-p must leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

_ONE = 2**31  # of a share, in units of 2**-31, as top-p has it
_COIN = 2**32


@dataclass(frozen=True)
class MoreFilters:
    """What a row wants beside top-p, top-k and min-p.

    Attributes:
        min_tokens_to_keep: most probable tokens that min-p leaves in any case, >= 1.
        xtc_probability: how often the top choices are excluded; 0 is off.
        xtc_threshold: what share of the mass that top-p and min-p leave makes a top choice; of
            these the least probable stays.
        xtc_special: tokens that are not excluded.

    Raises:
        ValueError: a number outside its range.
    """

    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_special: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        fine = 0 <= self.xtc_probability <= 1 and 0 <= self.xtc_threshold <= 1
        if not fine or self.min_tokens_to_keep < 1:
            raise ValueError(f"[metal_kernels.MoreFilters] {self}")


@dataclass(frozen=True, eq=False)
class Exclusion:
    """XTC of rows, on the device; of shape [b, ..], or [R, ..] where positions are rows too.

    Attributes:
        chance: [b, 1] int64, of 2**32 coins how many exclude.
        share: [b, 1] int64, the threshold in units of 2**-31.
        special: [b, S] int32, tokens that stay, padded with -1; S is 1 or more.
        top_k: [b, 1] int32, tokens to keep of those that are not excluded.
        by_count: whether some row has a top-k.
    """

    chance: mx.array
    share: mx.array
    special: mx.array
    top_k: mx.array
    by_count: bool

    @classmethod
    def of(cls, rows: Sequence[MoreFilters], top_k: mx.array, by_count: bool) -> Exclusion:
        """Collect the options of rows that exclude."""
        width = max(1, max(len(row.xtc_special) for row in rows))
        special = [[*row.xtc_special, *[-1] * (width - len(row.xtc_special))] for row in rows]
        chance = [round(row.xtc_probability * _COIN) for row in rows]
        share = [round(row.xtc_threshold * _ONE) for row in rows]
        return cls(
            mx.array(chance, mx.int64)[:, None],
            mx.array(share, mx.int64)[:, None],
            mx.array(special, mx.int32),
            top_k[:, None],
            by_count,
        )

    def each(self, change: Callable[[mx.array], mx.array]) -> Exclusion:
        """The same of other rows."""
        return Exclusion(
            change(self.chance),
            change(self.share),
            change(self.special),
            change(self.top_k),
            self.by_count,
        )
