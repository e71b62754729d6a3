"""``SharedPrompts``: one prompt of several requests is read once, however short, in any cache.

The first of them that is fed reads it; the others wait, and take over what its slot held at the
prompt's end: at once those that have a row, the rest as rows become free. Unlike the prefix cache,
which keeps whole blocks of any texts, this holds one prompt to its last token, of caches that
cannot be cut too, and no longer than until the last of those requests has it::

    reader     |== reads ==| copy        decodes
    others     waits       | load        decode, each by its own seed
    later one                            | load ...

Target and draft each read it once, into slots of their own. A draft may read a row when that has
said something already: up to the prompt's end all of them are alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Seq
from weakref import WeakKeyDictionary

import mlx.core as mx

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.sequence import Sequence


class PromptCopy:
    """What the slots of one model have of a prompt that several requests share.

    Args:
        members: who they are, by identity: their records are not held.

    Attributes:
        state: the prompt as its reader's slot held it, while others are to take it over.
        seen: how many tokens of it.
        left: members that have neither read it nor taken it over.
        reader: the one of them that reads.
    """

    def __init__(self, members: Iterable[int]) -> None:
        self.state: RowState | None = None
        self.seen = 0
        self.left = set(members)
        self.reader: int | None = None

    def leave(self, sequence: Sequence) -> None:
        """A member has it, or wants it no more."""
        self.left.discard(id(sequence))
        if not self.left:
            self.state = None


class PromptShare:
    """What requests with the same prompt have in common.

    Args:
        members: those requests.
    """

    def __init__(self, members: Iterable[Sequence]) -> None:
        self._members = [id(member) for member in members]
        self._copies: WeakKeyDictionary[KVCachePool, PromptCopy] = WeakKeyDictionary()

    def of(self, pool: KVCachePool) -> PromptCopy:
        """One model's copy."""
        found = self._copies.get(pool)
        if found is None:
            found = self._copies[pool] = PromptCopy(self._members)
        return found


class SharedPrompts:
    """One model's side: what its Feeder asks.

    Args:
        pool: where its rows are.
        begun: whether rows that have said something take part.
    """

    def __init__(self, pool: KVCachePool, *, begun: bool = False) -> None:
        self._pool, self._begun = pool, begun
        self._described: list[mx.array] = []  # copies that are not computed yet

    def nbytes(self, sequences: Iterable[Sequence]) -> int:
        """Bytes held of the prompts of these rows."""
        copies = {copy for sequence in sequences if (copy := self._copy(sequence)) is not None}
        return sum(copy.state.nbytes for copy in copies if copy.state is not None)

    def end(self, sequence: Sequence) -> int | None:
        """Where a row stops to be copied: its prompt but for the last token; None: nowhere."""
        copy = self._copy(sequence)
        reads = copy is not None and copy.reader == id(sequence)
        return len(sequence.prompt) - 1 if reads else None

    def take_over(self, sequence: Sequence, slot: int) -> int | None:
        """Fill a member's empty slot with the prompt.

        Returns:
            Tokens that it holds then, 0 where the row is to be read; None where it is to wait.
        """
        copy = self._copy(sequence)
        if copy is None or len(sequence.prompt) < 2:
            return 0
        if copy.state is not None:
            self._pool.load(slot, 0, [copy.state])
            copy.leave(sequence)
            return copy.seen
        if copy.reader is None:
            copy.reader = id(sequence)
        return 0 if copy.reader == id(sequence) else None

    def read(self, sequence: Sequence, slot: int, seen: int) -> None:
        """A row needs no more of its prompt, or stands at its end: copy it for the others."""
        copy = self._copy(sequence)
        if copy is None:
            return
        copy.leave(sequence)
        if copy.reader != id(sequence):
            return
        copy.reader = None
        if copy.left and 0 < seen < len(sequence.prompt):
            copy.state, copy.seen = self._pool.describe(slot, 0, seen), seen
            self._described += copy.state.flat

    def take_copies(self) -> list[mx.array]:
        """Copies to be computed, before the slots are written to."""
        copies, self._described = self._described, []
        return copies

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Rows are no longer read; another one begins anew."""
        for sequence in sequences:
            copy = self._copy(sequence)
            if copy is not None and copy.reader == id(sequence):
                copy.reader = None
            if copy is not None and sequence.ended:
                copy.leave(sequence)

    def _copy(self, sequence: Sequence) -> PromptCopy | None:
        """Of a row that still takes part."""
        if sequence.share is None or (sequence.tokens and not self._begun):
            return None
        copy: PromptCopy = sequence.share.of(self._pool)
        return copy if id(sequence) in copy.left else None


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
