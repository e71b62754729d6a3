"""``Pairs``: what a head reads at a row's newest positions, kept from one step to the next."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import mlx.core as mx


@dataclass(frozen=True)
class Pairs:
    """The newest pairs of each row.

    Attributes:
        tokens: [B, W] int32, token p + 1.
        hidden: [B, W, S * D] of the target, at p.
        starts: [B] int32, the first p.
        counts: [B] int32, how many are a row's.
        ready: which rows have one at all, as far as the host knows.
        written: whether the head's K/V have them.
    """

    tokens: mx.array
    hidden: mx.array
    starts: mx.array
    counts: mx.array
    ready: tuple[bool, ...]
    written: bool = False

    def rows(self, order: Seq[int]) -> Pairs:
        """New row i was row ``order[i]``."""
        index = mx.array(list(order), mx.int32)
        return Pairs(
            self.tokens[index],
            self.hidden[index],
            self.starts[index],
            self.counts[index],
            tuple(self.ready[row] for row in order),
            self.written,
        )

    def beside(self, others: Pairs) -> Pairs:
        """These rows and others behind them; the narrower ones are padded."""
        width = max(self.tokens.shape[1], others.tokens.shape[1])
        both = [self._widened(width), others._widened(width)]
        return Pairs(
            mx.concatenate([pairs.tokens for pairs in both]),
            mx.concatenate([pairs.hidden for pairs in both]),
            mx.concatenate([pairs.starts for pairs in both]),
            mx.concatenate([pairs.counts for pairs in both]),
            self.ready + others.ready,
            self.written and others.written,
        )

    def _widened(self, width: int) -> Pairs:
        more = width - self.tokens.shape[1]
        if more == 0:
            return self
        tokens = mx.pad(self.tokens, [(0, 0), (0, more)])
        return replace(self, tokens=tokens, hidden=mx.pad(self.hidden, [(0, 0), (0, more), (0, 0)]))

    def further(self, by: int) -> mx.array:
        """[B, W] int32: the token ``by`` further than ``tokens``; any where it is unknown."""
        if by == 0:
            return self.tokens
        return mx.pad(self.tokens[:, by:], [(0, 0), (0, min(by, self.tokens.shape[1]))])

    def tail(self, most: int) -> Pairs:
        """Each row's newest ones alone, ``most`` at most."""
        if self.tokens.shape[1] <= most:
            return self
        left = mx.maximum(self.counts - most, 0)
        at = left[:, None] + mx.arange(most)
        return replace(
            self,
            tokens=mx.take_along_axis(self.tokens, at, axis=1),
            hidden=mx.take_along_axis(self.hidden, at[:, :, None], axis=1),
            starts=self.starts + left,
            counts=self.counts - left,
        )

    def then(self, newer: Pairs) -> Pairs:
        """These, and behind each row's the newer ones of the same rows."""
        own, width = self.counts[:, None], self.tokens.shape[1]
        place = mx.arange(width + newer.tokens.shape[1])
        at = mx.where(place < own, place, mx.minimum(place - own + width, len(place) - 1))
        tokens = mx.concatenate([self.tokens, newer.tokens], axis=1)
        hidden = mx.concatenate([self.hidden, newer.hidden], axis=1)
        return replace(
            newer,
            tokens=mx.take_along_axis(tokens, at, axis=1),
            hidden=mx.take_along_axis(hidden, at[:, :, None], axis=1),
            starts=newer.starts - self.counts,
            counts=self.counts + newer.counts,
        )


def shifted(tokens: mx.array, at: mx.array, guess: mx.array) -> mx.array:
    """[B, W]: tokens one position on, and at place ``at`` [B, 1] of a row its guess [B, 1]."""
    moved = mx.roll(tokens, -1, 1)
    return mx.where(mx.arange(tokens.shape[1]) == at, guess, moved)
