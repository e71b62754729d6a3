"""``NoDraft``: the null object. Plain decoding is verification of zero drafts."""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext


class NoDraft(BaseDrafter):
    """Proposes nothing, so every step verifies zero drafts."""

    max_draft_tokens = 0

    def propose(self, context: DraftContext, count: int) -> Draft:
        """An empty draft, [B, 0]."""
        return Draft(mx.zeros((context.lengths.shape[0], 0), mx.int32))
