"""Batches of sampling options, for tests."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.config import SamplingParams
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.sequence import Sequence


def batch_of(options: Seq[dict[str, Any]], seeds: Seq[int] | None = None) -> SamplingBatch:
    seeds = range(len(options)) if seeds is None else seeds
    return SamplingBatch.of(
        [
            Sequence([1], SamplingParams(seed=seed, **option))
            for option, seed in zip(options, seeds, strict=True)
        ]
    )
