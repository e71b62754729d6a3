"""``SharedIndex``: what all requests of one decoder have said, the newest of it.

It belongs to one drafter, so to one decoder: no text is ever seen by another. An automaton cannot
forget its oldest tokens, so there are two, each of half of the bytes::

    young   is written and read; when it is full it becomes the old one
    old     is only read, and goes when the next one is full
"""

from __future__ import annotations

from collections.abc import Iterator

from mlx_spec.decoding.drafters.suffixes.automaton import ROOT, Match, SuffixAutomaton


class SharedIndex:
    """Two generations of texts.

    Args:
        nbytes: what both may take together.

    Attributes:
        young, old: the generations.
        turns: how often the old one was dropped.
    """

    def __init__(self, nbytes: int) -> None:
        self._most = nbytes // 2
        self.young, self.old = SuffixAutomaton(), SuffixAutomaton()
        self.turns = 0

    @property
    def nbytes(self) -> int:
        """Memory, about."""
        return self.young.nbytes + self.old.nbytes

    def turn(self) -> None:
        """Drop the oldest texts where the young ones fill their half."""
        if self.young.nbytes >= self._most:
            self.young, self.old = SuffixAutomaton(), self.young
            self.turns += 1


class SharedReader:
    """One row's place in the shared index: it writes its tokens and sees what followed elsewhere.

    Args:
        index: the one of all rows.
    """

    CONTEXT = 8  # tokens of a prompt's end that are written before the answer

    def __init__(self, index: SharedIndex) -> None:
        self._index, self._turn = index, index.turns
        self._end = ROOT
        self._old = (ROOT, 0)  # state in the old generation, and tokens that match there

    def append(self, token: int) -> None:
        """The row said this token."""
        index = self._index
        index.turn()
        if self._turn != index.turns:
            # What was young is old now, unless that went too.
            self._old = index.old.whole(self._end) if self._turn + 1 == index.turns else (ROOT, 0)
            self._end, self._turn = ROOT, index.turns
        self._old = index.old.step(*self._old, token)
        self._end = index.young.append(self._end, token)

    def matches(self) -> Iterator[Match]:
        """Where the end of the row's text was said before, in each generation."""
        index = self._index
        if self._turn != index.turns:
            return
        yield index.young.repeated(self._end)
        yield Match(index.old, *self._old, 0)
