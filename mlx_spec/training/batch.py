"""Examples as arrays of one batch, padded at their ends."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_spec.training.features import Example


@dataclass(frozen=True)
class Batch:
    """Examples [B], padded to N + 1 tokens; what is said of index p is of a guess that has read
    token p + 1, and guesses token p + 2.

    Attributes:
        tokens: [B, N + 1], the texts.
        hidden: [B, N, H] float32, the target's own at p.
        likely, logprobs: [B, N, KEPT], of token p + 2, as :class:`Example` has them.
        best: [B, N], the target's choice of token p + 2.
        counts: [B, N], 1 where there is such a position, else 0.
    """

    tokens: mx.array
    hidden: mx.array
    likely: mx.array
    logprobs: mx.array
    best: mx.array
    counts: mx.array

    @classmethod
    def of(cls, examples: Seq[Example]) -> Batch:
        """Put examples side by side."""
        width = max(map(len, examples))

        def padded(name: str) -> np.ndarray:
            parts = [getattr(one, name) for one in examples]
            room = [[(0, width - len(part)), *[(0, 0)] * (part.ndim - 1)] for part in parts]
            return np.stack([np.pad(*each) for each in zip(parts, room, strict=True)])

        ends = np.array([len(one) for one in examples])
        return cls(
            tokens=mx.array(padded("tokens")),
            hidden=mx.array(padded("hidden")[:, :-1]).astype(mx.float32),
            likely=mx.array(padded("likely")[:, 1:]),
            logprobs=mx.array(padded("logprobs")[:, 1:]).astype(mx.float32),
            best=mx.array(padded("best")[:, 1:]),
            counts=mx.array((np.arange(1, width) < ends[:, None]).astype(np.float32)),
        )

    def over(self, tokens: mx.array) -> Batch:
        """The same with the target's own ids [V'] in the place of rows of a vocabulary."""
        return replace(self, likely=tokens[self.likely])

    def cross_entropy(self, logits: mx.array) -> mx.array:
        """[B, N]: of the draft's logits [B, N, V'] to the target's likely tokens."""
        chosen = mx.take_along_axis(logits, self.likely, axis=-1)
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        return (mx.exp(self.logprobs) * (total - chosen)).sum(axis=-1)
