"""The running rows as the device sees them: known tokens, lengths and options, in row order.

Everything a step needs lives in these arrays, so that a step's graph can be built from the
results of the one before while that one still computes. The host's own copy of the truth is the
list of sequences; both agree whenever no step is in flight.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_spec.cache.slot_sizes import grown
from mlx_spec.decoding.rules import LogitsRule
from mlx_spec.decoding.rules.present import rules_of
from mlx_spec.decoding.sampler import Sample, SamplingBatch
from mlx_spec.sequence import Sequence


@dataclass
class BatchState:
    """Rows in slot order.

    Attributes:
        sequences: the running sequences; row i sits in slot i.
        tokens: [B, C] int32, known tokens from position 0; past ``lengths`` garbage.
        lengths: [B] int32, known tokens.
        seen: [B] int32, known tokens that the target's cache holds. The others are pending and
            open the next verify pass: one a row, or all of rows that begin together.
        sampling: the rows' options.
        rules: what these options do to logits; nothing where they do nothing.
        operation: what chooses tokens; None for the reference.
        opening: whether the target has read nothing of any row: the next pass does (``opening``).
    """

    sequences: list[Sequence] = field(default_factory=list)
    tokens: mx.array = field(default_factory=lambda: mx.zeros((0, 0), mx.int32))
    lengths: mx.array = field(default_factory=lambda: mx.zeros((0,), mx.int32))
    seen: mx.array = field(default_factory=lambda: mx.zeros((0,), mx.int32))
    sampling: SamplingBatch = field(default_factory=lambda: SamplingBatch.of([]))
    rules: tuple[LogitsRule, ...] = ()
    operation: Sample | None = None
    opening: bool = False

    def __len__(self) -> int:
        return len(self.sequences)

    def rearrange(
        self, order: Seq[int], newcomers: Seq[Sequence], *, opening: bool = False
    ) -> None:
        """Keep the rows ``order`` (old row numbers), then append newcomers.

        Only newcomers' prompts travel from the host; the other rows stay on the device.

        Args:
            opening: newcomers are all that there is, and nothing of them was read.
        """
        self.opening = opening or (self.opening and bool(order))
        self.sequences = [self.sequences[row] for row in order] + list(newcomers)
        if not self.sequences:
            empty = BatchState()
            self.tokens, self.lengths, self.seen = empty.tokens, empty.lengths, empty.seen
            self.rules = ()
            return
        rows = mx.array(list(order), mx.int32)
        parts = [(self.tokens[rows], self.lengths[rows])] if order else []
        if newcomers:
            parts.append(_upload(newcomers))
        width = max(tokens.shape[1] for tokens, _ in parts)
        self.tokens = mx.concatenate([_widen(tokens, width) for tokens, _ in parts])
        self.lengths = mx.concatenate([lengths for _, lengths in parts])
        self.seen = mx.zeros_like(self.lengths) if self.opening else self.lengths - 1
        self.sampling = SamplingBatch.of(self.sequences, self.operation)
        self.rules = rules_of(self.sequences)

    def reserve(self, positions: int) -> None:
        """Make room for ``positions`` tokens a row."""
        if positions > self.tokens.shape[1]:
            self.tokens = _widen(self.tokens, grown(self.tokens.shape[1], positions))

    def pending(self) -> mx.array:
        """[B, 1]: each row's last known token, which the target has not seen yet."""
        return mx.take_along_axis(self.tokens, self.seen[:, None], axis=1)

    def following(self, count: int) -> mx.array:
        """[B, count]: the positions of each row's next tokens."""
        begin = self.lengths[:, None]
        return begin if count == 1 else begin + mx.arange(count, dtype=mx.int32)

    def append(self, samples: mx.array, accepted: mx.array) -> None:
        """Add ``samples[:, : accepted + 1]`` of [B, K + 1]; the rest is garbage past the end."""
        where = self.following(samples.shape[1])
        self.tokens = mx.put_along_axis(self.tokens, where, samples, axis=1)
        self.seen = self.lengths + accepted
        self.lengths = self.seen + 1
        self.opening = False


def _upload(sequences: Seq[Sequence]) -> tuple[mx.array, mx.array]:
    """Tokens [b, C], padded with 0, and lengths [b] of what the host knows."""
    lengths = [sequence.length for sequence in sequences]
    tokens = np.zeros((len(sequences), max(lengths)), np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : lengths[row]] = sequence.prompt + sequence.tokens
    return mx.array(tokens), mx.array(lengths, mx.int32)


def _widen(tokens: mx.array, width: int) -> mx.array:
    missing = width - tokens.shape[1]
    return mx.pad(tokens, [(0, 0), (0, missing)]) if missing > 0 else tokens
