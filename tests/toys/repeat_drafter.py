"""A drafter in one file: it guesses that the last token comes again."""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext


class RepeatDrafter(BaseDrafter):
    """On the device: the step before may still be computing when this is asked."""

    def propose(self, context: DraftContext, count: int) -> Draft:
        last = mx.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
        return Draft(mx.broadcast_to(last, (last.shape[0], count)))


class HostRepeatDrafter(BaseDrafter):
    """On the host, and half as far for a token that its row says for the first time."""

    needs_host = True

    def propose(self, context: DraftContext, count: int) -> Draft:
        texts = [row.known(0, row.length) for row in context.sequences]
        counts = [count if text[-1] in text[:-1] else count // 2 for text in texts]
        guesses = [[text[-1]] * count for text in texts]
        return Draft(mx.array(guesses, mx.int32), mx.array(counts, mx.int32))
