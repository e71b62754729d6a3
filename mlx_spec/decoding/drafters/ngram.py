"""``NgramDrafter``: guesses what followed when a row's last tokens were said before.

No model and no work of the device: each row's text is indexed on the host as it comes
(``suffixes``), prompt and answer, and a guess is the path that mostly followed the longest match.
It goes as far as it is likely: each token's chance is learned from what came true.

Nothing found costs nothing. A row whose lookups are not confirmed by its text is only looked up
(``suffixes.confirmation``), and while that is so for all rows, steps are plain ones, built ahead.
The index then hears of tokens one step late::

    ahead     look up | build n+1 | read n | ...        tokens up to n - 1 are known
    in turn   look up, propose | verify n+1 | read n+1  all are

Whatever is kept is a ``Sequence``'s own and not a slot's: rows may move, leave and come back.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from weakref import WeakKeyDictionary

from mlx_spec.decoding.drafters.guesses import Guess
from mlx_spec.decoding.drafters.on_host import HostDrafter
from mlx_spec.decoding.drafters.suffixes.confirmation import worth_waiting
from mlx_spec.decoding.drafters.suffixes.row import Lookups, RowIndex
from mlx_spec.decoding.drafters.suffixes.shared import SharedIndex, SharedReader
from mlx_spec.decoding.drafters.suffixes.trust import Trust
from mlx_spec.sequence import Sequence

# Groups of match lengths, and how often guesses came true in chats and summaries of a small model.
MATCHES = (3, 4, 5, 7, 10, 16)
USUAL = (0.35, 0.5, 0.6, 0.7, 0.8, 0.88, 0.95)


class NgramDrafter(HostDrafter):
    """Looks the ends of texts up in what was said before.

    Args:
        shared_bytes: memory for an index of what all rows have said, beside each row's own; 0 for
            none. Never shared with another drafter.
        least: tokens that must match.
    """

    AT_ONCE = 1024  # tokens that are indexed before one step: a long prompt is read in pieces
    FLOOR = 0.3  # chance of a whole draft under which it is not continued

    def __init__(self, shared_bytes: int = 0, least: int = 2) -> None:
        self.shared = SharedIndex(shared_bytes) if shared_bytes else None
        own, others = Trust(MATCHES, USUAL), Trust(MATCHES, USUAL)
        self._lookups = Lookups(own, others, least, self.FLOOR)
        self._rows: dict[Sequence, RowIndex] = {}
        self._away: WeakKeyDictionary[Sequence, RowIndex] = WeakKeyDictionary()

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Newcomers are indexed from their first token on; who comes back goes on."""
        super().join(sequences, longest)
        for sequence in sequences:
            self._rows[sequence] = self._away.get(sequence) or self._new()

    def keep(self, order: Seq[int]) -> None:
        """Those that leave are kept in mind while they may come back."""
        self._hear()
        rows = list(self._rows.items())
        self._rows = {rows[row][0]: rows[row][1] for row in order}
        for sequence, index in rows:
            if sequence not in self._rows and not sequence.ended:
                self._away[sequence] = index

    def _worthwhile(self) -> bool:
        return worth_waiting([row.confirmation for row in self._rows.values()])

    def _guess(self, sequence: Sequence, most: int) -> list[Guess]:
        """What the row's lookups say, if they are confirmed."""
        index = self._rows[sequence]
        if not index.confirmation.verified or not index.caught_up(sequence):
            return []
        return index.guesses(most)

    def _hear(self) -> None:
        """Index what rows have said since the last time."""
        most = self.AT_ONCE
        for sequence, index in self._rows.items():
            if most > 0:
                most -= index.hear(sequence, most)

    def _new(self) -> RowIndex:
        shared = SharedReader(self.shared) if self.shared is not None else None
        return RowIndex(self._lookups, shared)
