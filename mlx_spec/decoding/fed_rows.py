"""Texts being read by a ``Feeder``, and the passes that read them."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.model.rows import Rows
from mlx_spec.sequence import Sequence


@dataclass(eq=False)
class FedRow:
    """A text being read.

    Attributes:
        sequence: whose it is.
        seen: tokens that are in the cache, or in passes that were built.
        group: rows that came together and are about as long.
        last: where the passes that are like the present one end for it.
        done: whether no more is to be read.
        passed: tokens of texts that came later and were read before.
    """

    sequence: Sequence
    seen: int
    group: int
    done: bool = False
    last: int = 0
    passed: int = 0

    @property
    def left(self) -> int:
        """Tokens that are still to be read; none of one that is done."""
        return 0 if self.done else self.sequence.length - 1 - self.seen


@dataclass(frozen=True)
class FedPass:
    """What one pass reads: positions ``begin .. end - 1`` of rows in neighbouring slots.

    Attributes:
        decoded: whether it is computed as decoding does (``cuts``).
        packs: whether rows that end before others leave no holes.
    """

    rows: list[FedRow]
    begin: int
    end: int
    decoded: bool = False
    packs: bool = False

    @property
    def tokens(self) -> int:
        if self.packs:
            return sum(self.end_of(row) - self.begin for row in self.rows)
        return len(self.rows) * (self.end - self.begin)

    def end_of(self, row: FedRow) -> int:
        """Where it ends for one of its rows."""
        return min(self.end, row.last)

    def read(self, first: int, width: int, vocabulary: int) -> Rows:
        """Its tokens, for rows in slots from ``first`` on; ``width`` a row, padding included."""
        tokens, counts = np.zeros((len(self.rows), width), np.int32), []
        for place, row in enumerate(self.rows):
            known = row.sequence.known(self.begin, self.end_of(row))
            tokens[place, : len(known)] = known
            counts.append(len(known))
        # A draft may have a smaller embedding: any token will do where it lacks one.
        tokens = np.minimum(tokens, vocabulary - 1)
        packing = TokenPacking.of(counts, sum(counts)) if self.packs else None
        return Rows(
            mx.array(tokens),
            mx.full((len(self.rows),), self.begin, mx.int32),
            self.begin + width,
            first,
            uniform=True,
            counts=mx.array(counts, mx.int32) if min(counts) < width else None,
            tentative=self.decoded,
            packing=packing,
        )
