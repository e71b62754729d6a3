"""A small independent model as something that learns: for targets whose states stay hidden.

A Llama of the target's vocabulary with tied embeddings, which begin as the target's own squeezed
into fewer dimensions (their principal axes). It guesses over the whole vocabulary, so what its
guesses cost is mostly that: few dimensions, few layers.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_spec.training.batch import Batch
from mlx_spec.training.features import Example
from mlx_spec.training.vocabulary import Vocabulary


class ModelLearner:
    """A small model.

    Args:
        model: what is trained, one of mlx-lm's.
        vocabulary: the tokens that it is taught; it may guess others too.
    """

    def __init__(self, model: Any, vocabulary: Vocabulary) -> None:
        self.module = model
        self._vocabulary = vocabulary

    def loss(self, module: Any, examples: Seq[Example], done: float) -> mx.array:
        """Cross-entropy to the target's own distributions, a mean over positions."""
        batch = Batch.of(examples)
        logits = module(batch.tokens)[:, 1:]
        batch = batch.over(self._vocabulary.ids)
        return (batch.cross_entropy(logits) * batch.counts).sum() / batch.counts.sum()

    def guess(self, module: Any, batch: Batch, depths: int) -> list[mx.array]:
        """Logits [B, N, V'] at each depth: the same, since it reads tokens alone."""
        logits = self._vocabulary.of_logits(module(batch.tokens)[:, 1:])
        return [logits] * depths

    def ids(self, rows: mx.array) -> mx.array:
        """The target's tokens for rows of the vocabulary of frequent ones."""
        return self._vocabulary.ids[rows]


def squeezed(embedding: mx.array, width: int) -> mx.array:
    """[V, width]: an embedding [V, H] on its ``width`` main axes, as large as before in sum."""
    whole = np.array(embedding.astype(mx.float32))
    _, axes = np.linalg.eigh(whole.T @ whole)
    return mx.array(whole @ axes[:, ::-1][:, :width])
