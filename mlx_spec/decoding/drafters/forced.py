"""``ForcedDrafter``: where a grammar leaves one continuation, that is the draft.

The bytes are forced, their split into tokens is not, so they are verified as any guess is. Rows
without a constraint, or with a choice, bring none; it costs no pass of any model.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import mlx.core as mx
import numpy as np

from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.sequence import Sequence


class ForcedDrafter(BaseDrafter):
    """Proposes the tokens that a row's constraint forces."""

    def __init__(self) -> None:
        self._rows: list[Sequence] = []

    @property
    def needs_host(self) -> bool:  # type: ignore[override]
        """While a row has a constraint, which is followed on the host."""
        return any(row.guide is not None for row in self._rows)

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Whether they have constraints is looked up in them."""
        self._rows += sequences

    def keep(self, order: Seq[int]) -> None:
        """Rows as they stand."""
        self._rows = [self._rows[row] for row in order]

    def propose(self, context: DraftContext, count: int) -> Draft:
        """What is forced, ``count`` tokens at most."""
        guesses = [self._forced(row, count) for row in context.sequences]
        lengths = [len(guess) for guess in guesses]
        tokens = np.zeros((len(guesses), max(lengths)), np.int32)
        for own, guess in zip(tokens, guesses, strict=True):
            own[: len(guess)] = guess
        return Draft(mx.array(tokens), lengths=lengths, chances=[[1.0] * n for n in lengths])

    @staticmethod
    def _forced(row: Sequence, count: int) -> list[int]:
        if row.guide is None:
            return []
        row.guide.follow(row.tokens)
        forced: list[int] = row.guide.forced(count)
        return forced
