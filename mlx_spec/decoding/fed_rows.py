"""Texts being read by a ``Feeder``, and the passes that read them."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.sequence import Sequence


@dataclass(eq=False)
class FedRow:
    """A text being read.

    Attributes:
        sequence: whose it is.
        seen: tokens that are in the cache, or in passes that were built.
        group: rows that came together and are about as long.
        last: where the passes that are like the present one end for it.
        done: whether no more is to be read.
        passed: tokens of texts that came later and were read before.
    """

    sequence: Sequence
    seen: int
    group: int
    done: bool = False
    last: int = 0
    passed: int = 0

    @property
    def left(self) -> int:
        """Tokens that are still to be read; none of one that is done."""
        return 0 if self.done else self.sequence.length - 1 - self.seen


@dataclass(frozen=True)
class FedPass:
    """What one pass reads: positions ``begin .. end - 1`` of rows in neighbouring slots.

    Attributes:
        decoded: whether it is computed as decoding does (``cuts``).
    """

    rows: list[FedRow]
    begin: int
    end: int
    decoded: bool = False

    @property
    def tokens(self) -> int:
        return len(self.rows) * (self.end - self.begin)

    def end_of(self, row: FedRow) -> int:
        """Where it ends for one of its rows."""
        return min(self.end, row.last)
