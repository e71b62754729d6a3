"""Rejection sampling: a draft token d stands with probability min(1, p(d) / q(d)).

Leviathan, Kalman and Matias 2023 (arXiv:2211.17192); Chen et al. 2023 (arXiv:2302.01318). p is the
distribution that the target's sample is drawn from (after rules, filters and temperature), q the
one that the draft token was drawn from. At the first token that falls, the row draws from what p
has more than q; where all stand, from p itself. So tokens are distributed as the target's own, but
which ones come depends on the draft: more of them stand than under shared noise, and a seed repeats
a text only where the same is drafted in the same steps.

::

    drafted (3 of 4 count)   d0   d1   d2    .          bonus: position 3, where nothing is tested
    u * q(d) < p(d)          yes  no   yes   -
    drawn                    r0   r1   r2    s3  s4     r from max(p - q, 0), s from p
    emitted                  d0   r1

A draft without probabilities is a point mass: q(d) = 1, so it stands with p(d), and r is p
without d. Rows that are greedy, or that others choose for, go by exact match.

All draws are functions of seed and position: the uniform numbers of one stream of the counter hash,
r and s of the target's noise, of which only one is used, and the draft's of another noise
(``SamplingBatch.apart``), so that d tells nothing of u, r and s. Whether a token is tested may
depend on what is known and on q, never on the token that was drawn: a position that is drafted but
not tested would be drawn from p where it should be from max(p - q, 0).
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

import metal_kernels
from metal_kernels import SampleRows
from metal_kernels.sample_rows import Group
from mlx_spec.decoding.acceptance import DraftTrial, count_accepted
from mlx_spec.decoding.sampler import SamplingBatch, one_hot


class RejectionSampling:
    """Accepts by rejection sampling; drafts are drawn under other noise, and bring their q."""

    needs_probabilities = True

    def drafting(self, sampling: SamplingBatch) -> SamplingBatch:
        """What a drafter draws with."""
        return sampling.apart

    def judge(self, trial: DraftTrial) -> tuple[mx.array, mx.array]:
        """As the protocol says."""
        samples, counts = trial.samples, trial.counts
        accepted = count_accepted(trial.draft, samples, counts)
        if trial.draft.shape[1] == 0:
            return samples, accepted
        samples = samples[...]  # other array objects: the caller's stay what they are
        for group in trial.sampling.rows.groups:
            own = _TriedRows(trial, group)
            samples[group.index], accepted[group.index] = own.settle(trial.sampling)
        return samples, accepted


class _TriedRows:
    """The drafts of one group of sampling rows."""

    def __init__(self, trial: DraftTrial, group: Group) -> None:
        rows, width = group.index, trial.draft.shape[1]
        self.group = group
        self.draft, self.samples = trial.draft[rows], trial.samples[rows]
        self.positions = trial.positions[rows][:, :width]
        self.tested = mx.arange(width) < trial.counts[rows][:, None]
        logits = trial.logits[rows][:, :width]
        self.target = metal_kernels.probabilities(logits, self.positions, group)
        self.proposed = self._proposed(trial)

    def _proposed(self, trial: DraftTrial) -> mx.array:
        """q [b, K, V]."""
        vocabulary = self.target.shape[-1]
        if trial.probabilities is None:
            return one_hot(self.draft, vocabulary)
        own = trial.probabilities[self.group.index][..., :vocabulary]
        missing = vocabulary - own.shape[-1]
        return mx.pad(own, [(0, 0), (0, 0), (0, missing)]) if missing > 0 else own

    def settle(self, sampling: SamplingBatch) -> tuple[mx.array, mx.array]:
        """[b, K + 1] tokens and [b] int32 how many of the draft stand."""
        token = self.draft[..., None]
        ours = mx.take_along_axis(self.target, token, axis=-1)[..., 0]
        theirs = mx.take_along_axis(self.proposed, token, axis=-1)[..., 0]
        stands = metal_kernels.uniforms(self.positions, self.group) * theirs < ours
        run = mx.cumprod((stands & self.tested).astype(mx.int32), axis=1)
        drawn = mx.where(self.tested, self._residual(sampling), self.samples[:, :-1])
        tokens = mx.where(run.astype(mx.bool_), self.draft, drawn)
        return mx.concatenate([tokens, self.samples[:, -1:]], axis=1), run.sum(axis=1)

    def _residual(self, sampling: SamplingBatch) -> mx.array:
        """[b, K] draws from what the target has more than the draft."""
        more = mx.maximum(self.target - self.proposed, 0)
        # Where both are the same but for rounding, nothing falls and this is never seen.
        some = more.max(axis=-1, keepdims=True) > 0
        logits = mx.log(mx.where(some, more, self.target))
        return sampling.operation(logits, self.positions, _unfiltered(self.group)).tokens


def _unfiltered(group: Group) -> SampleRows:
    """The rows of a group as a batch of their own, under the same noise, for any logits."""
    rows = tuple(range(len(group.rows)))
    plain = replace(
        group,
        rows=rows,
        index=mx.array(rows, mx.int32),
        inverse_temperature=mx.ones_like(group.inverse_temperature),
        filters=False,
    )
    return SampleRows(len(rows), (), (plain,))
