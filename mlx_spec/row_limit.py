"""``RowLimit``: how many rows may run together, said in one place.

An engine has one; its scheduler, its decoder and the decoder's members ask it, and whoever changes
it (``Engine.set_batch_size``) changes it for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RowLimit:
    """Most rows that run together; may be changed at any time, and holds from the next step on.

    Attributes:
        rows: at least 1. Where more run, the scheduler preempts some; a decoder without one lets
            nobody in until enough have left.
    """

    rows: int
