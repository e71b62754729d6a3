"""``LabelPass``: labels' further tokens, read behind the prompts that are in the slots."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from metal_kernels.log_sum import log_sum
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.pipeline.scoring.ways import LabelPath, Tokens

Job = tuple[int, LabelPath]
"""A row, and what is read behind its prompt."""


@dataclass(frozen=True)
class LabelPass:
    """One pass, a slot a job.

    Attributes:
        prompts, labels: of all rows.
        jobs: what is read.
        first: the slot of the first one; they hold the jobs' prompts.
    """

    prompts: Seq[Tokens]
    labels: Seq[Seq[Tokens]]
    jobs: Seq[Job]
    first: int

    @cached_property
    def owners(self) -> list[tuple[int, int]]:
        """Row and label of each number that :meth:`read` gives."""
        return [
            (row, number)
            for row, way in self.jobs
            for number in way.labels
            for _ in self.labels[row][number][1:]
        ]

    def read(self, runner: ModelRunner) -> list[float]:
        """Log-probabilities of the labels' tokens but the first, one after the other."""
        rows = self._rows(runner)
        width, wanted, begin = rows.tokens.shape[1], list[tuple[int, int]](), 0
        for row, way in self.jobs:
            for number in way.labels:
                wanted += enumerate(self.labels[row][number][1:], begin)
            begin += width if rows.packing is None else len(way.tokens)
        return log_probs(runner.forward(rows), wanted)

    def _rows(self, runner: ModelRunner) -> Rows:
        """Without holes where that can be."""
        starts = tuple(len(self.prompts[row]) for row, _ in self.jobs)
        counts = [len(way.tokens) for _, way in self.jobs]
        width, ragged = max(counts), min(counts) < max(counts)
        padded = [way.tokens + way.tokens[-1:] * (width - len(way.tokens)) for _, way in self.jobs]
        return Rows(
            mx.array(padded, mx.int32),
            mx.array(starts, mx.int32),
            max(starts) + width,
            self.first,
            counts=mx.array(counts, mx.int32) if ragged else None,
            at=starts,
            packing=TokenPacking.of(counts, sum(counts)) if ragged and runner.packs else None,
        )


def log_probs(logits: mx.array, wanted: Seq[tuple[int, int]]) -> list[float]:
    """Of [..., V] logits the log-probability of a token at each place."""
    logits = logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
    places, tokens = (mx.array(each, mx.int32) for each in zip(*wanted, strict=True))
    values: Any = (logits[places, tokens] - log_sum(logits)[places, 0]).tolist()
    return list(values)
