"""Choosing tokens from logits, for a whole batch at once, each row with its own options.

The sample of a request with seed s at position t is the Gumbel-max sample
``argmax(filtered_logits / temperature + g(s, t))``. The noise ``g(s, t)`` is keyed by seed and
position and by nothing else: not by the batch, the slot, the step or the draft. That is what
makes speculation exact when sampling (see ``acceptance``) and a seed reproducible anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.sequence import Sequence

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling options of the running rows, as arrays.

    Attributes:
        temperature, top_p, min_p: [B] float32.
        top_k: [B] int32, 0 keeps all.
        seeds: [B] uint32.
        samples: some row samples (else all are greedy and no noise is drawn).
        filters: some sampling row filters (else nothing is sorted).
    """

    temperature: mx.array
    top_p: mx.array
    top_k: mx.array
    min_p: mx.array
    seeds: mx.array
    samples: bool
    filters: bool

    @classmethod
    def of(cls, sequences: Seq[Sequence]) -> SamplingBatch:
        """Collect the options of ``sequences``, in row order."""
        options = [sequence.sampling for sequence in sequences]
        sampled = [option for option in options if option.temperature > 0]
        return cls(
            temperature=mx.array([option.temperature for option in options], mx.float32),
            top_p=mx.array([option.top_p for option in options], mx.float32),
            top_k=mx.array([min(option.top_k, LARGEST) for option in options], mx.int32),
            min_p=mx.array([option.min_p for option in options], mx.float32),
            seeds=mx.array([sequence.seed for sequence in sequences], mx.uint32),
            samples=bool(sampled),
            filters=any(o.top_p < 1 or o.top_k > 0 or o.min_p > 0 for o in sampled),
        )

    def noise(self, positions: mx.array, vocabulary: int) -> mx.array | None:
        """Gumbel noise [B, N, vocabulary] for positions [B, N]; None when all rows are greedy."""
        if not self.samples:
            return None
        rows, width = positions.shape
        seeds = mx.broadcast_to(self.seeds[:, None], (rows, width))
        keys = mx.stack([seeds, positions.astype(mx.uint32)], axis=-1).reshape(-1, 2)
        draw = mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))
        noise: mx.array = draw(keys).reshape(rows, width, vocabulary)
        return noise

    def choose(self, logits: mx.array, noise: mx.array | None) -> mx.array:
        """The sample of each position.

        Args:
            logits: [B, N, V].
            noise: [B, N, V'] as :meth:`noise` gave it (V' = V, or the models' embeddings are
                padded to different sizes: what only one of them has is cut off or left undrawn).

        Returns:
            [B, N] int32 tokens.
        """
        if noise is None:
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        vocabulary = min(logits.shape[-1], noise.shape[-1])
        logits = logits[..., :vocabulary].astype(mx.float32)
        temperature = self.temperature[:, None, None]
        greedy = temperature == 0
        kept = self._filter(logits) if self.filters else logits
        # Below the best one, so that a tiny temperature gives 0 and -inf, never two infinities.
        kept = kept - kept.max(axis=-1, keepdims=True)
        drawn = kept / mx.where(greedy, 1.0, temperature) + noise[..., :vocabulary]
        return mx.argmax(mx.where(greedy, logits, drawn), axis=-1).astype(mx.int32)

    def _filter(self, logits: mx.array) -> mx.array:
        """Set what top-p, top-k and min-p drop to -inf; one sort serves all three.

        Each keeps the first so many of one ranking, most probable first and the lower token id
        first among equals, so together they keep the least of the three numbers.
        """
        vocabulary = logits.shape[-1]
        ranked = mx.sort(logits, axis=-1)  # the best one last
        probabilities = mx.softmax(ranked, axis=-1, precise=True)
        before = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
        top_p = self.top_p[:, None, None]
        kept_by_p = mx.where(top_p < 1, (before < top_p).sum(axis=-1, keepdims=True), vocabulary)
        top_k = self.top_k[:, None, None]
        kept = mx.minimum(kept_by_p, mx.where(top_k > 0, top_k, vocabulary))
        kept = mx.clip(kept, 1, vocabulary).astype(mx.int32)
        lowest = mx.take_along_axis(ranked, vocabulary - kept, axis=-1)
        # log(0) = -inf keeps everything: min_p = 0 switches the filter off.
        probable = ranked[..., -1:] + mx.log(self.min_p)[:, None, None]
        threshold = mx.maximum(lowest, probable)
        # How many of those that equal the threshold stay: all that are as probable as min-p asks.
        room = kept - (ranked > lowest).sum(axis=-1, keepdims=True)
        room = mx.where(probable > lowest, vocabulary, room)
        place = mx.cumsum(logits == threshold, axis=-1)  # among those, by id
        kept_here = (logits > threshold) | ((logits == threshold) & (place <= room))
        return mx.where(kept_here, logits, -mx.inf)
