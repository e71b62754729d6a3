"""``PassGroup``: which rows share one pass over prompts.

Neighbours in slots that stand at the same place and are computed alike are read together: packed
where the model can, else such as end about where the others do, so that little is padding::

    slots 3 4 5     seen = 64 for all       packed     3 and 4 and 5: 36 + 20 + 180 tokens
    end 100 84 244                          padded     3 and 4: 2 x 36 tokens; 5 goes too far
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_spec.decoding.fed_rows import FedPass, FedRow

# Tokens by which rows of a padded pass may differ: so many, and half of what the shortest reads.
FEW = 32


class PassGroup:
    """A pass as it is put together, row by row. True once there is one.

    Args:
        left: tokens that it may take, padding included.
        pads: whether rows may end at different places.
        packs: whether rows that end before others leave no holes; asked where it matters, since the
            answer may take a look at the model.
    """

    def __init__(self, left: int, *, pads: bool, packs: Callable[[], bool]) -> None:
        self._left, self._pads, self._packs = left, pads, packs
        self._rows: list[FedRow] = []
        self._slot = self._shortest = self._end = self._total = 0
        self._decoded = False

    def __bool__(self) -> bool:
        return bool(self._rows)

    def apart(self, slot: int) -> bool:
        """Whether a slot is none beside the last row's."""
        return bool(self._rows) and slot != self._slot + 1

    def take(self, row: FedRow, slot: int, end: int, *, decoded: bool) -> bool:
        """Take a row in that is to be read up to ``end``; False where it does not fit the others.

        Args:
            decoded: whether it is computed as decoding does.
        """
        begin, low, high = row.seen, min(end, self._shortest or end), max(end, self._end)
        if self._rows and (begin, decoded) != (self._rows[0].seen, self._decoded):
            return False
        packs = low < high and not decoded and self._packs()
        room = FEW + (low - begin) // 2 if self._pads else 0
        total = self._total + end - begin
        tokens = total if packs else (len(self._rows) + 1) * (high - begin)
        if tokens > self._left or not (packs or high - low <= room):
            return False
        self._rows.append(row)
        self._slot, self._decoded = slot, decoded
        self._shortest, self._end, self._total = low, high, total
        return True

    def made(self) -> FedPass | None:
        """The pass over the rows that were taken in; None where none was."""
        if not self._rows:
            return None
        packs = self._shortest < self._end and not self._decoded and self._packs()
        return FedPass(self._rows, self._rows[0].seen, self._end, self._decoded, packs)
