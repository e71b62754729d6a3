"""``MappedRunner``: a draft model whose tokens have other ids than the target's, in the target's.

Whoever runs it reads and writes the target's ids: noise, rules and known tokens need no second
numbering, and a pair agrees as often as if its ids were the same::

    target's ids    0 "a"  1 "b"  2 "c"  3 "<im>"     tokens [2 0] -> [0 2]
    draft's ids     0 "c"  1 "b"  2 "a"  3 "<s>"      logits [c b a s] -> [a b c -inf]

What the draft alone has is never guessed: the best token of both is, which costs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.model.pairing import NO_TOKEN
from mlx_spec.model.runner import ModelRunner, Rows


class MappedRunner(ModelRunner):
    """A model with its slots, in another model's ids.

    Args:
        model, max_slots, options: as for ``ModelRunner``.
        to_draft: [ids of the target] int32, the model's id of each token, or ``NO_TOKEN``.
        vocabulary: size of the target's logits, which may be padded.

    Raises:
        UnsupportedModel: as ``ModelRunner``.
    """

    def __init__(
        self,
        model: Any,
        max_slots: int,
        to_draft: np.ndarray[Any, Any],
        vocabulary: int,
        options: CacheOptions = PLAIN_CACHES,
    ) -> None:
        super().__init__(model, max_slots, options)
        own, known = np.full(vocabulary, NO_TOKEN, np.int32), min(vocabulary, len(to_draft))
        own[:known] = to_draft[:known]
        own[own >= self.support.vocabulary] = NO_TOKEN
        self._ids = mx.array(np.maximum(own, 0))  # of what the model lacks, any token will do
        self._common = mx.array(own != NO_TOKEN)
        mx.eval(self._ids, self._common)  # any thread may use them

    @property
    def vocabulary(self) -> int:
        """That of the target."""
        return self._ids.size

    def forward(self, rows: Rows) -> mx.array:
        """Logits [B, N, vocabulary], -inf for tokens that the model lacks."""
        logits = super().forward(replace(rows, tokens=self._ids[rows.tokens]))
        return mx.where(self._common, mx.take(logits, self._ids, axis=-1), -mx.inf)
