"""``FixedDraftLength``: always the same."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row, cap_lengths


class FixedDraftLength:
    """The same draft length for every row and step, less only where a row is about to end."""

    def __init__(self, length: int) -> None:
        self.length = length

    def choose(self, rows: Seq[Row]) -> list[int]:
        """``length``, or what the row may still emit less the bonus token."""
        return cap_lengths(rows, self.length)

    def observe(self, report: StepReport) -> None:
        """Nothing to learn."""

    def forget(self) -> None:
        """Nothing to undo."""
