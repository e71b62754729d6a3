"""``DraftLengthPolicy``: who says how far to guess in each step."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Row


class DraftLengthPolicy(Protocol):
    """Chooses each row's draft length and learns from what came of it.

    One decoder's alone, called from its thread. A step may be chosen before the one before it was
    observed.
    """

    def choose(self, rows: Seq[Row]) -> list[int]:
        """Draft length of each row for the next step."""
        ...

    def observe(self, report: StepReport) -> None:
        """Learn from a finished step."""
        ...

    def forget(self) -> None:
        """The step of the last choice was dropped before it was launched."""
        ...
