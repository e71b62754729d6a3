"""``PromptShare``: one prompt of several requests is read once, however short, in any cache.

The first of them that is fed reads it; the others wait, and take over what its slot holds then: at
once those that have a row, the rest as rows become free. Unlike the prefix cache, which keeps whole
blocks of any texts, this holds one prompt to its last token, of caches that cannot be cut too, and
no longer than until the last of those requests has it::

    reader     |== reads ==| copy        decodes
    others     waits       | load        decode, each by its own seed
    later one                            | load ...
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.sequence import Sequence


class PromptShare:
    """What requests with the same prompt have in common.

    Args:
        members: those requests.

    Attributes:
        state: the prompt as its reader's slot held it, while others are to take it over.
    """

    def __init__(self, members: Iterable[Sequence]) -> None:
        self.state: RowState | None = None
        self._left = set(members)
        self._reader: Sequence | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self.state is None else self.state.nbytes

    def take_over(self, sequence: Sequence, pool: KVCachePool, slot: int) -> bool | None:
        """Fill a member's slot with the prompt but for its last token.

        Returns:
            Whether that was done; None where the member is to wait for the one that reads.
        """
        if sequence not in self._left or sequence.tokens or sequence.length < 2:
            return False
        if self.state is not None:
            pool.load(slot, 0, [self.state])
            self._leave(sequence)
            return True
        if self._reader is None:
            self._reader = sequence
        return False if self._reader is sequence else None

    def read(self, sequence: Sequence, pool: KVCachePool, slot: int) -> list[Any]:
        """A member's prompt is read: copy it for the others.

        Returns:
            The arrays of the copy, to be computed before the slot is written to.
        """
        if sequence not in self._left or sequence.tokens:
            return []
        self._leave(sequence)
        if sequence is not self._reader or not self._left:
            return []
        self.state = pool.describe(slot, 0, sequence.length - 1)
        return self.state.flat

    def drop(self, sequence: Sequence) -> None:
        """A member is no longer read; another one begins anew."""
        if sequence is self._reader and self.state is None:
            self._reader = None

    def _leave(self, sequence: Sequence) -> None:
        self._left.discard(sequence)
        if not self._left:
            self.state = None


def share_prompts(sequences: Seq[Sequence]) -> None:
    """Have those with the same prompt read it once."""
    alike: dict[tuple[int, ...], list[Sequence]] = {}
    for sequence in sequences if len(sequences) > 1 else ():
        alike.setdefault(tuple(sequence.prompt), []).append(sequence)
    for members in alike.values():
        if len(members) > 1:
            share = PromptShare(members)
            for member in members:
                member.share = share
