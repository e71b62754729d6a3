"""``RowDemand``: who wants a row, as whoever decides knows it and a step does not show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RowDemand:
    """Requests of an engine; its decoder's policy reads it.

    Attributes:
        waiting: those without a row, now.
        came: all so far. Rows that begin need not be news: a batch that is given as a whole has
            all of it from the first step on, however long its prompts are read.
    """

    waiting: int = 0
    came: int = 0
