"""``LogitBiases``: a number added to the logits of some tokens."""

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
class LogitBiases(Processor):
    """Biases of some rows.

    Attributes:
        tokens: [b, E] int32, padded with -1.
        biases: [b, E] float32.
    """

    tokens: mx.array
    biases: mx.array

    @staticmethod
    def wanted(sampling: SamplingParams) -> bool:
        """Whether there is a bias."""
        return bool(sampling.biases)

    @classmethod
    def of(cls, sequences: Seq[Sequence]) -> LogitBiases:
        """Those of these rows."""
        biases = [sequence.sampling.biases for sequence in sequences]
        width = max(map(len, biases))
        values = [[bias for _, bias in row] + [0.0] * (width - len(row)) for row in biases]
        tokens = ids_of([[token for token, _ in row] for row in biases])
        return cls(tokens, mx.array(values, mx.float32))

    def process(self, logits: mx.array, context: RuleContext) -> mx.array:
        """Added in the type of the logits, as mlx-lm does."""
        places, known = places_of(self.tokens[:, None], logits)
        values = mx.where(known, self.biases[:, None], 0).astype(logits.dtype)
        return logits.at[places].add(values)
