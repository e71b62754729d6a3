"""Bytes that a decoding step must read, against how fast this machine's memory is read at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.cache.cost import RowCost
from mlx_spec.config import CacheOptions
from mlx_spec.model.support import examine
from mlx_spec.platform import recommended_memory

_SIDE = 8192  # of a square matrix in float32: 256 MB, more than any cache holds
_SMALL = 4096
_TIMES = 5
# What mlx-lm's classes call the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Bandwidth:
    """What MLX reached here in two short tests.

    Attributes:
        copy: bytes a second read and written by a copy.
        read: bytes a second read by the product of a matrix and a vector, as decoding reads.
    """

    copy: float
    read: float

    @property
    def best(self) -> float:
        """What a share is a share of."""
        return max(self.copy, self.read)


def measure_bandwidth() -> Bandwidth:
    """Time both tests, in a second or less; needs two matrices of 256 MB, or of 64 where memory is
    small."""
    side = _SIDE if recommended_memory() > 2**32 else _SMALL
    matrix, vector = mx.ones((side, side)), mx.ones((side, 1))
    mx.eval(matrix, vector)
    copied = _fastest(lambda: matrix + 1)
    read = _fastest(lambda: matrix @ vector)
    mx.clear_cache()
    return Bandwidth(2 * matrix.nbytes / copied, matrix.nbytes / read)


def _fastest(make: Callable[[], mx.array]) -> float:
    """Seconds of the quickest of some runs, the first one apart: what the memory can do."""
    taken = []
    for _ in range(_TIMES + 1):
        started = time.perf_counter()
        mx.eval(make())
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


@dataclass(frozen=True)
class StepBytes:
    """What plain decoding reads.

    Attributes:
        weights: bytes of all weights that every step reads.
        experts: bytes of experts, of which a token reads ``share``.
        share: experts of a token over all.
        cost: bytes that a row keeps of its tokens, by their number.
    """

    weights: int
    experts: int
    share: float
    cost: RowCost

    def step(self, rows: int, tokens: float) -> float:
        """Bytes of a step in which each row looks back to so many tokens."""
        used = 1 - (1 - self.share) ** rows if self.share else 1.0
        return self.weights + used * self.experts + rows * self.cost.nbytes(round(tokens))


def step_bytes(model: Any, cache: CacheOptions) -> StepBytes:
    """Count them. An embedding of which a step reads single rows counts only where it is the
    output layer, too."""
    weights = experts = 0
    args = getattr(model, "args", None)
    tied = getattr(args, "tie_word_embeddings", True)
    for name, value in tree_flatten(model.parameters()):
        if "embed_tokens" in name and not tied:
            continue
        if ".switch_mlp." in name:
            experts += int(value.nbytes)
        else:
            weights += int(value.nbytes)
    chosen = getattr(args, "num_experts_per_tok", None)
    count = next(filter(None, (getattr(args, name, None) for name in _EXPERTS)), None)
    share = chosen / count if experts and chosen and count else 0.0
    return StepBytes(weights, experts, share, examine(model, cache).cost)
