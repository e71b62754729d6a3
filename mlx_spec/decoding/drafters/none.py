"""``NoDraft``: the null object. Plain decoding is verification of zero drafts."""

from __future__ import annotations

from mlx_spec.decoding.drafters.base import BaseDrafter


class NoDraft(BaseDrafter):
    """Can propose nothing, so that it is never asked to."""

    max_draft_tokens = 0
