"""The rules that the present rows' own options ask for: made anew whenever rows come or go.

The order is mlx-lm's. A rule of a decoder's own (``SpeculativeDecoder(rules=...)``) comes after.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.decoding.rules.base import LogitsRule
from mlx_spec.decoding.rules.bias import LogitBiases
from mlx_spec.decoding.rules.foreign import ForeignFunctions
from mlx_spec.decoding.rules.min_tokens import MinTokens
from mlx_spec.decoding.rules.penalties import (
    FrequencyPenalty,
    PresencePenalty,
    RepetitionPenalty,
)
from mlx_spec.decoding.rules.processors import Processor, Processors
from mlx_spec.sequence import Sequence

KINDS: tuple[type[Processor], ...] = (
    LogitBiases,
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    MinTokens,
)
"""All processors, in the order in which they are applied."""


def rules_of(sequences: Seq[Sequence]) -> tuple[LogitsRule, ...]:
    """What these rows' options do to logits, in order; nothing where they do nothing."""
    made = (Processors.of(sequences, KINDS), ForeignFunctions.of(sequences))
    return tuple(rule for rule in made if rule is not None)
