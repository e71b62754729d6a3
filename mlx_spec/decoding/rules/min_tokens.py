"""``MinTokens``: no token that ends a text before so many of it are said."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.config import SamplingParams
from mlx_spec.decoding.rules.base import RuleContext
from mlx_spec.decoding.rules.processors import Processor
from mlx_spec.decoding.rules.tokens import ids_of, places_of
from mlx_spec.sequence import Sequence


@dataclass(frozen=True, eq=False)
class MinTokens(Processor):
    """Where the texts of some rows may end.

    Attributes:
        ends: [b, E] int32, tokens that end each row, padded with -1.
        least: [b, 1, 1] int32, the first position at which they may.
    """

    ends: mx.array
    least: mx.array

    @staticmethod
    def wanted(sampling: SamplingParams) -> bool:
        """Whether there is such a number."""
        return sampling.min_tokens > 0

    @classmethod
    def of(cls, sequences: Seq[Sequence]) -> MinTokens:
        """Those of these rows."""
        least = [len(one.prompt) + one.sampling.min_tokens for one in sequences]
        ends = ids_of([sorted(one.stop_ids) for one in sequences])
        return cls(ends, mx.array(least, mx.int32)[:, None, None])

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Whether some row has said too little yet, as far as the host knows."""
        return any(one.stop_ids and len(one.tokens) < one.sampling.min_tokens for one in sequences)

    def process(self, logits: mx.array, context: RuleContext) -> mx.array:
        """-inf for those tokens at positions before."""
        if self.ends.shape[1] == 0:
            return logits
        places, known = places_of(self.ends[:, None], logits)
        forbidden = known & (context.positions[..., None] < self.least)
        limits = mx.where(forbidden, -mx.inf, mx.inf).astype(logits.dtype)
        return logits.at[places].minimum(limits)
