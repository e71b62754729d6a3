"""``ReadingQueue``: the texts that a ``Feeder`` reads, in the order in which they will be done.

Texts that come together and are about as long are one group, so that they can be done together.
It knows how far each text is read and nothing of slots, passes and caches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Seq
from itertools import takewhile

from mlx_spec.decoding.fed_rows import FedRow
from mlx_spec.decoding.reading_order import with_newcomers
from mlx_spec.sequence import Sequence

# How long texts of one group may be: so many times the shortest, and so many tokens more.
TIMES, MORE = 1.5, 32


class ReadingQueue:
    """Rows that are being read. True while there are any."""

    def __init__(self) -> None:
        self._rows: dict[Sequence, FedRow] = {}
        self._group = 0
        self._asked = 0  # tokens of all texts that came since nobody's was read

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self) -> Iterator[FedRow]:
        return iter(self._rows.values())

    def __getitem__(self, sequence: Sequence) -> FedRow:
        return self._rows[sequence]

    @property
    def sequences(self) -> list[Sequence]:
        """Whose texts they are, in order."""
        return list(self._rows)

    @property
    def progress(self) -> tuple[int, int]:
        """Tokens that passes were built over, and all tokens, of the texts read since nobody's
        was."""
        missing = sum(max(0, row.sequence.length - 1 - row.seen) for row in self)
        return self._asked - missing, self._asked

    def add(self, sequences: Seq[Sequence], seen: Mapping[Sequence, int]) -> None:
        """Take rows in, behind all others.

        Args:
            sequences: the rows, in their order.
            seen: tokens from the first on that the slots of some of them hold already.
        """
        if not self._rows:
            self._asked = 0
        self._asked += sum(sequence.length - 1 for sequence in sequences)
        shortest = None  # of the group
        for sequence in sequences:
            if shortest is None or not _alike(sequence.length, shortest):
                self._group += 1
                shortest = None if sequence in seen else sequence.length
            self._rows[sequence] = FedRow(sequence, seen.get(sequence, 0), self._group)

    def pass_longer(self, newcomers: int) -> list[int]:
        """Let the rows that came last pass much longer ones; the rows' old places, in new order."""
        rows = list(self)
        at = len(rows) - newcomers
        order = with_newcomers(rows[:at], rows[at:])
        self._rows = {row.sequence: row for row in order}
        return [rows.index(row) for row in order]

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Forget rows: they leave."""
        for sequence in sequences:
            self._rows.pop(sequence, None)

    def before(self, row: FedRow) -> list[Sequence]:
        """Those in front of a row that are not done."""
        earlier = takewhile(lambda other: other is not row, self)
        return [other.sequence for other in earlier if not other.done]

    def take(self, *, in_order: bool, groups: bool) -> dict[Sequence, int]:
        """Hand over the rows that are done, with what was seen of each.

        Args:
            in_order: only those that no row stands before which is not done.
            groups: and only whole groups.
        """
        rows = list(self)
        reading = {row.group for row in rows if not row.done}
        if in_order:
            rows = list(takewhile(lambda row: row.done, rows))
        done = {
            row.sequence: row.seen
            for row in rows
            if row.done and not (groups and row.group in reading)
        }
        self.drop(done)
        return done


def _alike(length: int, shortest: int) -> bool:
    """Whether a text may be of the group of a shorter one, or one as long."""
    return shortest <= length <= TIMES * shortest + MORE
