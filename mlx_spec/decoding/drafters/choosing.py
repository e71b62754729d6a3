"""``Guessing``: from a drafter's logits to its guesses, as the target chooses its tokens.

Guesses are drawn with the target's own noise, which is keyed by seed, position and token, and by
the rules that the target's logits are ruled by: so they agree as often as the logits do.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

import metal_kernels
from mlx_spec.decoding.drafters.base import DraftContext
from mlx_spec.decoding.rules import RuleContext, apply_rules


@dataclass(frozen=True)
class Guessing:
    """How a drafter chooses.

    Attributes:
        temperature: of guesses for rows that sample, in the place of their own; None for theirs.
    """

    temperature: float | None = None

    def choose(self, context: DraftContext, logits: mx.array, draft: list[mx.array]) -> mx.array:
        """[B, 1] int32: the guess after what is drafted of [B, 1] each so far.

        Args:
            context: the rows.
            logits: [B, 1, V] of the drafter.
            draft: its guesses so far.
        """
        positions = context.lengths[:, None] + len(draft)
        # A draft whose embeddings are padded to more must not propose what the target lacks.
        logits = logits[..., : context.vocabulary]
        if context.rules:
            none = mx.zeros((len(logits), 0), mx.int32)
            known = (context.sequences, context.tokens, context.lengths, positions)
            behind = RuleContext(*known, mx.concatenate([none, *draft], axis=1))
            logits = apply_rules(context.rules, logits, behind)
        sampling = context.sampling
        if self.temperature is not None:
            sampling = sampling.tempered(self.temperature)
        if context.drawn is not None:
            context.drawn.add(sampling.probabilities(logits, positions))
        tokens = sampling.choose(logits, positions)
        if context.sure is not None:
            context.sure.add(metal_kernels.leads(logits, positions, sampling.rows, tokens))
        return tokens


def known_at(context: DraftContext, beyond: int) -> tuple[int, ...] | None:
    """The positions ``beyond`` the rows' lengths, where the host knows them."""
    if context.known is None:
        return None
    return tuple(max(0, length + beyond) for length in context.known)
