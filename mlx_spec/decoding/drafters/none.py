"""``NoDraft``: the null object. Plain decoding is verification of zero drafts."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.decoding.drafters.base import DraftContext
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


class NoDraft:
    """Proposes nothing, so every step verifies zero drafts."""

    needs_host = False

    @property
    def prefix_bytes(self) -> int:
        """None."""
        return 0

    @property
    def max_draft_tokens(self) -> int | None:
        """None can be proposed."""
        return 0

    @property
    def runners(self) -> tuple[ModelRunner, ...]:
        """None."""
        return ()

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Nothing to keep."""

    def keep(self, order: Seq[int]) -> None:
        """Nothing to keep."""

    def catch_up(self, context: DraftContext) -> int:
        """Nothing to read."""
        return 0

    def covers(self) -> list[bool]:
        """Nobody asks: no step drafts."""
        return []

    def propose(self, context: DraftContext, count: int) -> mx.array:
        """An empty draft, [B, 0]."""
        return mx.zeros((context.lengths.shape[0], 0), mx.int32)

    def snapshot(self) -> None:
        """Nothing to keep."""

    def restore(self, snapshot: None) -> None:
        """Nothing to keep."""
