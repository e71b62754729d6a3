"""A draft head as something that learns: its first weights, and its loss at several depths."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

from mlx_spec.model.heads.head import DraftHead
from mlx_spec.model.heads.last_word import LastWord
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.training.batch import Batch
from mlx_spec.training.features import Example
from mlx_spec.training.unrolled import unroll

# What a deeper guess counts, of one a depth less: guesses are read in order.
_DEEPER = 0.8
# What the distance to the target's hidden states counts at first, in parts of their own size (at
# last nothing: then only guesses do); and the part of a course that has one depth alone.
_STATES, _SHALLOW = 4.0, 0.4


class HeadLearner:
    """A head, and of the target its embedding and the rows of its output head.

    Args:
        head: what is trained, its tokens included.
        parts: of the target: its embedding, and its output head's rows of the head's tokens.
        depths: positions that it is trained to guess ahead.
    """

    def __init__(self, head: DraftHead, parts: TargetParts, depths: int) -> None:
        self.module = head
        self._embedding, self._depths = parts.embed, depths
        self._rows, self._last = parts.rows(head.tokens), parts.last or LastWord()

    def loss(self, module: Any, examples: Seq[Example], done: float) -> mx.array:
        """To the target's own distributions and hidden states, a mean over positions and depths."""
        batch = Batch.of(examples)
        loss, weight = mx.zeros(()), mx.zeros(())
        states, known = batch.hidden[:, 1:], batch.counts[:, 1:]
        scale = ((states**2).mean(axis=-1) * known).sum() / known.sum()
        for depth, output in enumerate(self._outputs(module, batch, self._depths_at(done))):
            counts = batch.counts * _DEEPER**depth
            counts[:, :depth] = 0
            loss += (batch.cross_entropy(self._logits(output)) * counts).sum()
            apart = ((output[:, :-1] - states) ** 2).mean(axis=-1) / scale
            loss += _STATES * (1 - done) * (apart * counts[:, 1:] * known).sum()
            weight += counts.sum()
        return loss / mx.maximum(weight, 1)

    def _depths_at(self, done: float) -> int:
        """One at first, which costs least; all of them at last."""
        grown = max(0.0, done - _SHALLOW) / (1 - _SHALLOW)
        return min(self._depths, 1 + int(grown * (self._depths - 1) + 1e-9) + (grown > 0))

    def guess(self, module: Any, batch: Batch, depths: int) -> list[mx.array]:
        """Logits [B, N, V'] at each depth."""
        return [self._logits(output) for output in self._outputs(module, batch, depths)]

    def _logits(self, output: mx.array) -> mx.array:
        return self._last(output @ self._rows.T)

    def _outputs(self, module: Any, batch: Batch, depths: int) -> list[mx.array]:
        return unroll(module, self._embedding(batch.tokens[:, 1:]), batch.hidden, depths)

    def ids(self, rows: mx.array) -> mx.array:
        """The target's tokens for rows of the vocabulary of frequent ones."""
        return self.module.tokens[rows]
