"""``DrafterStats``: what one drafter gave, of a request or of all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrafterStats:
    """What one drafter gave.

    Attributes:
        drafted, accepted: its draft tokens that the target verified, and accepted.
        row_steps: target passes in which it guessed, counted per row.
        seconds: of these steps, each shared among the rows that had a draft; 0 where that is not
            counted.
    """

    drafted: int = 0
    accepted: int = 0
    row_steps: int = 0
    seconds: float = 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def plus(self, drafted: int, accepted: int, seconds: float = 0.0) -> DrafterStats:
        """With one row's step more."""
        return DrafterStats(
            self.drafted + drafted,
            self.accepted + accepted,
            self.row_steps + 1,
            self.seconds + seconds,
        )

    def __str__(self) -> str:
        return f"{self.acceptance_rate:.1%} ({self.accepted:,} of {self.drafted:,})"
