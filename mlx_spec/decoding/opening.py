"""Rows that begin together: their first step reads their prompts, too.

A pass costs nearly the same for one token and for some more, and a short prompt takes a whole pass
of its own. So where nothing decodes, and all that waits is short, rows begin to decode unread, and
their first pass reads whole texts with their drafts, from position 0 on::

    read apart    pass a b c d e         step f + drafts    step ...
    opening       step a b c d e f + drafts                 step ...

    rectangle     a b c d e f x y        logits are wanted behind f, x and y; of the second row
    of two rows   g h i x y . . .        behind i, x and y

Only where nobody sees a difference: models whose passes go in one call, caches that hold by
position what a pass has written, and drafters that look at nothing of the target's.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.cache.quantized import QuantizedSlots
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.model.passes.form import WHOLE
from mlx_spec.model.runner import ModelRunner, Rows

# Known tokens of all rows: the head computes logits of each, which reading them apart does not.
MOST_TOKENS = 64

_KINDS = (DenseKVCache, QuantizedSlots)


def may_open(runner: ModelRunner, drafter: Drafter) -> bool:
    """Whether first steps of this target may read prompts, whoever guesses."""
    whole = runner.support.form == WHOLE and not (runner.tapped or runner.ranks.several)
    by_position = all(type(layer) in _KINDS for layer in runner.pool.layers)
    return whole and by_position and not drafter.reads_slots


@dataclass(frozen=True)
class OpeningPass:
    """A pass of rows of which the target has read nothing.

    Attributes:
        rows: whole texts, each with its draft.
        ends: [B, K + 1], of each row the tokens behind which logits are wanted: among its own, or
            of a packed pass among all.
    """

    rows: Rows
    ends: list[list[int]]

    @classmethod
    def of(
        cls,
        state: BatchState,
        draft: mx.array,
        lengths: Seq[int],
        packed: Callable[[Seq[int], int], int | None],
    ) -> OpeningPass:
        """Of all rows.

        Args:
            state: the rows.
            draft: [B, K] guesses.
            lengths: how many of them each row has.
            packed: tokens of the packed pass over rows that bring so many, where that pays.
        """
        known, most = [row.length for row in state.sequences], draft.shape[1]
        tokens = state.tokens[:, : max(known) + most]
        if most:
            tokens = mx.put_along_axis(tokens, state.following(most), draft, axis=1)
        counts = [length + own for length, own in zip(known, lengths, strict=True)]
        width = max(counts)
        whole = packed(counts, width)
        rows = Rows(
            tokens[:, :width],
            mx.zeros((len(known),), mx.int32),
            width,
            uniform=True,
            counts=mx.array(counts, mx.int32) if min(counts) < width else None,
            tentative=True,
            packing=None if whole is None else TokenPacking.of(counts, whole),
        )
        first, ends = 0, list[list[int]]()
        for length, count in zip(known, counts, strict=True):
            ends.append([first + min(length - 1 + place, count - 1) for place in range(most + 1)])
            first += 0 if whole is None else count
        return cls(rows, ends)

    def behind(self, logits: mx.array) -> mx.array:
        """[B, K + 1, V] of the pass's: behind the last known token of each row, and its guesses."""
        index = mx.array(self.ends, mx.int32)
        if self.rows.packing is not None:
            return mx.take(logits[:, 0], index, axis=0)
        if len(self.ends) == 1:
            return logits[:, self.ends[0][0] :]
        return mx.take_along_axis(logits, index[..., None], axis=1)
