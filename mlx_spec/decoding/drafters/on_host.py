"""``HostDrafter``: guesses that cost no pass of any model, made by the host of what it knows.

Only while they are likely worth it are steps taken in turn, so that the host knows all that rows
have said (``needs_host``); else steps are built ahead and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.guesses import Guess, host_draft
from mlx_spec.sequence import Sequence


class HostDrafter(BaseDrafter):
    """What a kind defines: :meth:`_worthwhile`, :meth:`_guess`, and what it hears."""

    _wanted = True  # whether the last step wanted a draft

    @property
    def needs_host(self) -> bool:  # type: ignore[override]
        """Whether enough is likely gained that all rows wait for the host, and it was asked for."""
        self._hear()
        return self._wanted and self._worthwhile()

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """What was not worth it for others may be for these."""
        self._wanted = True

    def skip(self, most: int = 1) -> None:
        """Nobody wants a draft: steps may be built ahead until somebody does."""
        self._wanted = False

    def propose(self, context: DraftContext, count: int) -> Draft:
        """What the rows' guesses are; none while a step is in flight, since what follows it is not
        known."""
        self._wanted = True
        rows = context.sequences
        if context.known is None:
            return host_draft(rows, [[] for _ in rows])
        self._hear()
        return host_draft(rows, [self._guess(row, count) for row in rows])

    def _worthwhile(self) -> bool:
        """Whether the rows' next guesses are worth a verification, in turn."""
        raise NotImplementedError(f"[{type(self).__name__}._worthwhile] a drafter defines this")

    def _guess(self, sequence: Sequence, most: int) -> list[Guess]:
        """What is likely to follow in a row, at most so many tokens."""
        raise NotImplementedError(f"[{type(self).__name__}._guess] a drafter defines this")

    def _hear(self) -> None:
        """Take in what rows have said since the last time."""
