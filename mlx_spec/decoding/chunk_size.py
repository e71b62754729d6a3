"""How much of somebody's prompt is read at once: the size of a piece, and how many go together.

A text is cut at multiples of a piece, fixed for a model and a setting once its pace is known, so
that its K/V do not depend on the traffic. What running rows wait for is bounded by the *number* of
pieces that go between two of their steps, which follows the pace as it is::

    bound 100 ms, piece 256 = 40 ms    |piece|piece|  step  |piece|piece|  step
    the same at 90 ms a piece          |   piece   |  step  |   piece   |  step
    64 tokens take 250 ms              |    the least piece there is    |  step
"""

from __future__ import annotations

from mlx_spec.config import BatchingConfig
from mlx_spec.model.pace import AIM
from mlx_spec.model.reading_pace import ReadingPace
from mlx_spec.model.runner import pass_size

# Of the bound, what a draft model may take beside the target: it reads the same texts faster.
DRAFT_SHARE = 0.25


class ChunkSize:
    """How much one Feeder reads at once.

    Args:
        pace: of its model.
        batching: what the user says: milliseconds, or tokens.
        share: of the milliseconds.
    """

    def __init__(self, pace: ReadingPace, batching: BatchingConfig, share: float = 1.0) -> None:
        self._pace = pace
        self._lone = batching.prefill_step_size
        tokens = batching.prefill_interleave
        self._bound = share * batching.prefill_pause_ms / 1e3 if tokens is None else AIM
        self._most = self._lone if tokens is None else tokens

    @property
    def piece(self) -> int:
        """Texts are cut at multiples of this many tokens."""
        return self._pace.piece(self._bound, min(self._most, pass_size(self._lone)))

    def between_steps(self, *, alone: bool = False) -> int:
        """Tokens that are read between two steps, over all rows.

        Args:
            alone: no stream waits for them but those of the rows that are read.
        """
        bound, most = (AIM, self._lone) if alone else (self._bound, self._most)
        return self._pace.chunk(bound, most, min(self.piece, most))

    @property
    def at_once(self) -> int:
        """Tokens of a pass where nothing decodes, over all rows."""
        return pass_size(self._lone)
