"""Choosing tokens from logits, for a whole batch at once, each row with its own options.

The sample of a request with seed s at position t is the Gumbel-max sample
``argmax(filtered_logits / temperature + g(s, t))``. The noise ``g(s, t)`` is keyed by seed,
position and token and by nothing else: not by the batch, the slot, the step or the draft. That is
what makes speculation exact when sampling (see ``acceptance``) and a seed reproducible anywhere.
How it is done is ``metal_kernels.sample``'s affair.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import mlx.core as mx

import metal_kernels
from metal_kernels import MoreFilters, Sampled, SampleRows
from mlx_spec.config import SamplingParams
from mlx_spec.sequence import Sequence

_OTHER_NOISE = (0x2545F491, 0x9E3779B1)

Sample: TypeAlias = Callable[..., Sampled]
"""An implementation of ``metal_kernels.sample``."""


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling options of the running rows.

    Attributes:
        rows: seeds and options, in row order.
        operation: the implementation.
    """

    rows: SampleRows
    operation: Sample = metal_kernels.sample.reference

    @classmethod
    def of(cls, sequences: Seq[Sequence], operation: Sample | None = None) -> SamplingBatch:
        """Collect the options of ``sequences``, in row order."""
        options = [sequence.sampling for sequence in sequences]
        rows = SampleRows.of(
            [sequence.seed for sequence in sequences],
            [option.temperature for option in options],
            [option.top_p for option in options],
            [option.top_k for option in options],
            [option.min_p for option in options],
            [_more(option) for option in options],
        )
        return cls(rows, operation or metal_kernels.sample.reference)

    def of_tokens(self, rows: Seq[int]) -> SamplingBatch:
        """For tokens that are rows of their own, each with the options of row ``rows[i]``."""
        return replace(self, rows=self.rows.of_tokens(rows))

    def sample_told(self, logits: mx.array, positions: mx.array, told: mx.array) -> Sampled:
        """The sample of tokens of which the device alone knows whose they are.

        Each kind of rows that there is (greedy ones, groups) samples all tokens, and each token
        takes its own's: where all rows are of one kind nothing is done twice.

        Args:
            logits: [M, 1, V].
            positions: [M, 1].
            told: [M] int32, the row of each.
        """
        first, *more = [
            (number, self.operation(logits, positions, rows, tops=True))
            for number, rows in self.rows.of_told(told)
        ]
        sampled, kinds = first[1], mx.array(self.rows.kinds, mx.int32)[told][:, None]
        for number, own in more:
            tokens = mx.where(kinds == number, own.tokens, sampled.tokens)
            sampled = sampled._replace(tokens=tokens)
        return sampled

    def tempered(self, temperature: float) -> SamplingBatch:
        """The same with another temperature for all rows that sample."""
        groups = tuple(
            replace(
                group, inverse_temperature=mx.full(group.index.shape, 1 / temperature, mx.float32)
            )
            for group in self.rows.groups
        )
        return replace(self, rows=replace(self.rows, groups=groups))

    @cached_property
    def apart(self) -> SamplingBatch:
        """The same options under other noise, for draws that must not be the target's own."""
        word = mx.array(_OTHER_NOISE, mx.uint32)
        groups = tuple(replace(group, seeds=group.seeds ^ word) for group in self.rows.groups)
        return replace(self, rows=replace(self.rows, groups=groups))

    def probabilities(self, logits: mx.array, positions: mx.array) -> mx.array:
        """[B, N, V] float32: the distribution from which each sample is drawn.

        Of a greedy row all of it lies on its token.
        """
        groups = self.rows.groups
        if len(groups) == 1 and len(groups[0].rows) == self.rows.batch:
            return metal_kernels.probabilities(logits, positions, groups[0])
        spread = one_hot(mx.argmax(logits, axis=-1), logits.shape[-1])
        for group in groups:
            own = logits[group.index], positions[group.index]
            spread[group.index] = metal_kernels.probabilities(*own, group)
        return spread

    def sample(self, logits: mx.array, positions: mx.array, *, tops: bool = False) -> Sampled:
        """The sample of each position.

        Args:
            logits: [B, N, V]. Models of one token map may be padded to different V: a token's
                noise is the same in all of them.
            positions: [B, N], of the tokens to choose.
            tops: give the largest logits [B, N] too.
        """
        return self.operation(logits, positions, self.rows, tops=tops)

    def choose(self, logits: mx.array, positions: mx.array) -> mx.array:
        """[B, N] int32, the tokens of :meth:`sample`."""
        return self.sample(logits, positions).tokens


def _more(option: SamplingParams) -> MoreFilters:
    return MoreFilters(
        option.min_tokens_to_keep,
        option.xtc_probability,
        option.xtc_threshold,
        option.special_tokens,
    )


def one_hot(tokens: mx.array, vocabulary: int) -> mx.array:
    """[..., V] float32: all probability on these tokens [...]."""
    return (tokens[..., None] == mx.arange(vocabulary, dtype=tokens.dtype)).astype(mx.float32)
