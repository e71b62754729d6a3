"""Which draft tokens stand: the target's own sample decides.

With *shared noise* the drafter and the target draw position t with the same noise, so a draft
token is accepted iff it equals the target's own sample there; the target's sample is the
correction at the first mismatch and the bonus token when all agree. Every emitted token is the
target's own sample, so the output does not depend on the drafter at all (Daliri, Musco and Suresh
2024, "Coupling without communication and drafter-invariant speculative decoding",
arXiv:2408.07978). Greedy decoding is the same rule without noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_spec.decoding.sampler import SamplingBatch

# In the place of a row's accepted count: its logits are no numbers, so it emits nothing.
NO_NUMBERS = -1


@dataclass(frozen=True)
class DraftTrial:
    """A draft and what the target says of it; all may still be computing.

    Attributes:
        draft: [B, K] int32 tokens.
        counts: [B] int32, how many of them count, from the first on.
        probabilities: [B, K, V] float32, the distributions that they were drawn from; V as the
            drafter has it. None: each was sure of itself.
        logits: [B, K + 1, V] of the target, after all rules.
        positions: [B, K + 1] int32.
        samples: [B, K + 1] int32, the target's own tokens.
        sampling: the rows' options.
    """

    draft: mx.array
    counts: mx.array
    probabilities: mx.array | None
    logits: mx.array
    positions: mx.array
    samples: mx.array
    sampling: SamplingBatch


class AcceptanceRule(Protocol):
    """Says which draft tokens stand, and what comes behind them."""

    @property
    def needs_probabilities(self) -> bool:
        """Whether a drafter shall tell the distributions that it draws from."""
        ...

    def drafting(self, sampling: SamplingBatch) -> SamplingBatch:
        """What a drafter draws with."""
        ...

    def judge(self, trial: DraftTrial) -> tuple[mx.array, mx.array]:
        """Tokens [B, K + 1] int32 and accepted counts [B] int32.

        A row emits its tokens up to and with the one behind those accepted.
        """
        ...


class SharedNoise:
    """Accepts what the target would have said itself."""

    needs_probabilities = False

    def drafting(self, sampling: SamplingBatch) -> SamplingBatch:
        """The target's own noise."""
        return sampling

    def judge(self, trial: DraftTrial) -> tuple[mx.array, mx.array]:
        """As the protocol says."""
        return trial.samples, count_accepted(trial.draft, trial.samples, trial.counts)


def count_accepted(draft: mx.array, samples: mx.array, lengths: mx.array | None) -> mx.array:
    """Length of each row's leading run of accepted draft tokens.

    Args:
        draft: [B, K] proposed tokens.
        samples: [B, K + 1] the target's own samples at those positions and the one after.
        lengths: [B] draft length of each row, at most K; None where all are K.

    Returns:
        [B] int32 in 0..K. The row emits ``samples[:, : accepted + 1]``.
    """
    width = draft.shape[1]
    if width == 0:  # a plain step is made of few things, each of which a CPU feels
        return mx.zeros((draft.shape[0],), mx.int32)
    agree = draft == samples[:, :width]
    if lengths is not None:
        agree = agree & (mx.arange(width) < lengths[:, None])
    return mx.cumprod(agree.astype(mx.int32), axis=1).sum(axis=1)


def refuse_nan(accepted: mx.array, tops: mx.array) -> mx.array:
    """``accepted`` [B], or ``NO_NUMBERS`` for rows whose largest logits [B, N] are not all finite.

    NaN passes through a maximum; -inf below it may be a model's own mask.
    """
    # A finite number less itself is 0, an infinity or NaN less itself is NaN, and so is their sum.
    sound = (tops - tops).sum(axis=1) == 0
    return mx.where(sound, accepted, NO_NUMBERS)


def refuse_negative(accepted: mx.array, samples: mx.array) -> tuple[mx.array, mx.array]:
    """The same, ``NO_NUMBERS`` for rows of ``samples`` [B, N] that hold a negative one; and these
    as tokens."""
    some = (samples < 0).any(axis=1)
    return mx.where(some, NO_NUMBERS, accepted), mx.maximum(samples, 0)
