"""Where positions lie in a ring, and who sees them: arithmetic, and no arrays of keys."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

# Entries beyond the window: the widest pass that is written in place, and what a draft model may
# run ahead of what is known (a ride of 8 tokens, then its guesses).
SLACK = 32
NOWHERE = 2**30  # the position of what holds nothing


@dataclass(frozen=True)
class Ring:
    """Where positions lie: the first ``keep`` at their own entries, the others in a circle.

    Attributes:
        window: tokens that one sees, itself and the first ``keep`` included.
        keep: first tokens that are seen for ever.
        slack: entries more than that.
    """

    window: int
    keep: int = 0
    slack: int = SLACK

    @property
    def reach(self) -> int:
        """Tokens that one sees, itself included, beside the first ones."""
        return max(1, self.window - self.keep)

    @property
    def circle(self) -> int:
        """Entries that are written again and again; fixed, so that no bit depends on traffic."""
        return self.reach + self.slack

    @property
    def entries(self) -> int:
        """All of them. One more is behind them, for what is to go nowhere."""
        return self.keep + self.circle

    def places(self, positions: mx.array) -> mx.array:
        """Entries of positions."""
        around = (positions - self.keep) % self.circle + self.keep
        return mx.where(positions < self.keep, positions, around) if self.keep else around

    def held(self, ends: mx.array) -> mx.array:
        """[B, entries]: positions that rows of [B] tokens hold, ``NOWHERE`` where none."""
        entry, last = mx.arange(self.entries, dtype=mx.int32), ends[:, None] - 1
        held = last - (last - entry) % self.circle
        if self.keep:
            pinned = mx.where(entry <= last, entry, -1)
            held = mx.where(entry < self.keep, pinned, mx.where(held < self.keep, -1, held))
        return mx.where(held < 0, NOWHERE, held)

    def seen(self, keys: mx.array, queries: mx.array, window: int | None) -> mx.array:
        """Whether queries see keys, both positions; ``window`` is a model's own, if smaller."""
        near = keys > queries - self.reach
        near = near | (keys < self.keep) if self.keep else near
        if window is not None and window < self.window:
            near = near & (keys > queries - window)
        return near & (keys <= queries)
