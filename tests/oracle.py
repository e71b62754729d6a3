"""A drafter that knows what the target will say, and spoils as much of it as it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from tests.models import VOCABULARY


class OracleDrafter(BaseDrafter):
    """On the device, so that a step may be in flight when it is asked.

    Args:
        texts: by prompt what the target makes of it, the prompt included, long enough.
        agreement: share of guesses that are right, the wrong ones strewn over all positions.
    """

    def __init__(self, texts: Mapping[tuple[int, ...], Seq[int]], agreement: float) -> None:
        self._texts, self._agreement = texts, agreement

    def propose(self, context: DraftContext, count: int) -> Draft:
        texts = [self._texts[tuple(row.prompt)] for row in context.sequences]
        longest = max(map(len, texts)) + context.longest + count
        known = mx.array([[*text, *[0] * (longest - len(text))] for text in texts], mx.int32)
        positions = context.lengths[:, None] + mx.arange(count, dtype=mx.int32)
        guesses = mx.take_along_axis(known, positions, axis=1)
        rows = mx.arange(len(texts), dtype=mx.int32)[:, None]
        spoilt = (7 * positions + 3 * rows) % 10 >= round(10 * self._agreement)
        return Draft(mx.where(spoilt, (guesses + 1) % VOCABULARY, guesses))
