"""The tokens that a head can guess: those that the target's own texts use most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np


class Vocabulary:
    """Some of a target's tokens, sorted; row j stands for token ``tokens[j]``.

    Args:
        tokens: their ids.
        size: of the target's logits.
    """

    def __init__(self, tokens: Iterable[int], size: int) -> None:
        self.tokens = np.array(sorted(tokens), np.int32)
        self.size = size

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> mx.array:
        """[V'] int32."""
        return mx.array(self.tokens)

    @cached_property
    def rows(self) -> Any:
        """[V], the row of each of the target's tokens; -1 for those that cannot be guessed."""
        rows = np.full(self.size, -1, np.int32)
        rows[self.tokens] = np.arange(len(self.tokens))
        return rows

    def of_logits(self, logits: mx.array) -> mx.array:
        """Of logits [..., V] those of these tokens, [..., V']."""
        return logits if len(self) == self.size else logits[..., self.ids]


def frequent(texts: Iterable[Iterable[int]], most: int, size: int) -> Vocabulary:
    """The ``most`` tokens that texts use most often; those that none uses come by their number,
    since tokenizers give low numbers to common pieces."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text)
    order = sorted(range(size), key=lambda token: (-counts[token], token))
    return Vocabulary(order[:most], size)
