"""What drafters hear of the target: what it said to their guesses, and what it has read.

All of it is described and not computed. A drafter that keeps nothing of it costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_spec.model.rows import Rows
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class Verified:
    """A step whose tokens are chosen; plain ones too, where K is 0.

    Attributes:
        starts: [B] int32, position of each row's pending token, the first one that was read.
        samples: [B, K + 1] int32, the target's own tokens: ``samples[:, j]`` stands at position
            ``starts + j + 1``.
        accepted: [B] int32, leading guesses that stand: a row gains ``accepted + 1`` tokens, and
            none where it is -1.
        hidden: [B, K + 1, D] of the target at ``starts + j``, where somebody tapped it.
    """

    starts: mx.array
    samples: mx.array
    accepted: mx.array
    hidden: mx.array | None


@dataclass(frozen=True)
class Fed:
    """A pass over prompts, of which the target's hidden states are wanted.

    Attributes:
        sequences: whose the rows are.
        rows: what was read, and in which slots.
        ends: where each row ends, as numbers: tokens before that are read.
        following: [b, N] int32, the token behind each that was read.
        hidden: [b, N, D].
        begin: where all rows begin.
    """

    sequences: Seq[Sequence]
    rows: Rows
    ends: Seq[int]
    following: mx.array
    hidden: mx.array
    begin: int

    @classmethod
    def of(cls, ends: Mapping[Sequence, int], begin: int, rows: Rows, hidden: mx.array) -> Fed:
        """Of rows that were read from ``begin`` to their ends; what comes behind those is known."""
        following = _ahead(list(ends.items()), begin, rows, 1)
        return cls(list(ends), rows, list(ends.values()), following, hidden, begin)

    def further(self, by: int) -> mx.array:
        """[b, N] int32: the token ``by`` further than ``following``; any where it is unknown."""
        ends = list(zip(self.sequences, self.ends, strict=True))
        return _ahead(ends, self.begin, self.rows, by + 1) if by else self.following


def _ahead(ends: Seq[tuple[Sequence, int]], begin: int, rows: Rows, by: int) -> mx.array:
    ahead = np.zeros(rows.tokens.shape, np.int32)
    for place, (sequence, end) in enumerate(ends):
        known = sequence.known(begin + by, end + by)
        ahead[place, : len(known)] = known
    return mx.array(ahead)
