"""``SuffixAutomaton``: every stretch of some texts, how often it came, and what came after it.

Built token by token (Blumer et al. 1985, "The smallest automaton recognizing the subwords of a
text"). A state stands for all stretches that end at the same places, so a text of n tokens needs at
most 2 n states. Its link leads to the longest suffix that ends at more places. So the longest end
of a text that was said before is known without a search: it is one link away::

    text     a b c x a b c          append(c) makes the state of "abcxabc"
    states   "abcxabc" -link-> "abc", "bc", "c" (twice) -link-> "" (root)
    follow   "abc" -x-> "abcx": a guess for what is next, chance 1 of 1

States are numbers into flat arrays (20 bytes each); most have one edge, which has a place of its
own, the others are in small dictionaries. Measured with text: about 120 bytes and 3 microseconds a
token.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

ROOT = 0
NOWHERE = 0  # no edge leads to the root


class Continuation(NamedTuple):
    """What mostly follows a state.

    Attributes:
        token: the token.
        state: where it leads.
        times: how often it followed.
        edges: how many different tokens followed.
    """

    token: int
    state: int
    times: int
    edges: int


class Match(NamedTuple):
    """Where the end of a text was found.

    Attributes:
        within: in what.
        state: of the stretch that matches.
        length: of it, in tokens.
        own: how many of the places where it stands are the text's own end.
    """

    within: SuffixAutomaton
    state: int
    length: int
    own: int


class SuffixAutomaton:
    """An index of texts that grow at their ends; each writer keeps the state of its own end."""

    COUNTED = 16  # links that an occurrence is counted along: more are loops of one token
    MOST_EDGES = 32  # what so many tokens followed foretells nothing
    STATE_BYTES, EDGE_BYTES, FORK_BYTES = 20, 100, 232

    def __init__(self) -> None:
        self._longest = array("i", [0])
        self._link = array("i", [-1])
        self._count = array("i", [0])
        self._token = array("i", [-1])  # the first edge: its token, and where it leads
        self._target = array("i", [NOWHERE])
        self._forks: dict[int, dict[int, int]] = {}  # further edges of states that have some
        self._edges = 0  # in these

    @property
    def nbytes(self) -> int:
        """Memory, about."""
        states = len(self._link) * self.STATE_BYTES
        return states + self._edges * self.EDGE_BYTES + len(self._forks) * self.FORK_BYTES

    def append(self, end: int, token: int) -> int:
        """Let the text that ends in a state go on; the state of its new end."""
        state = self.follow(end, token)
        if state == NOWHERE:
            state = self._grow(end, token)
        elif self._longest[state] != self._longest[end] + 1:
            state = self._split(end, token, state)
        count, link = self._count, self._link
        suffix = state
        for _ in range(self.COUNTED):
            count[suffix] += 1
            suffix = link[suffix]
            if suffix <= ROOT:
                break
        return state

    def repeated(self, end: int) -> Match:
        """The longest end of a text that also stands elsewhere."""
        state = end if self._count[end] > 1 else max(self._link[end], ROOT)
        return Match(self, state, self._longest[state], 1)

    def whole(self, end: int) -> tuple[int, int]:
        """A state, and the tokens of the longest stretch of it."""
        return end, self._longest[end]

    def follow(self, state: int, token: int) -> int:
        """Where a token leads from a state, or ``NOWHERE``."""
        if self._token[state] == token:
            return self._target[state]
        fork = self._forks.get(state)
        return NOWHERE if fork is None else fork.get(token, NOWHERE)

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """A reader that matches ``length`` tokens up to a state reads one more.

        Returns:
            The state and length of the longest end of what it read that the texts hold.
        """
        links, longest = self._link, self._longest
        while True:
            # What grew since the reader stood here may have split the state.
            while state != ROOT and longest[links[state]] >= length:
                state = links[state]
            target = self.follow(state, token)
            if target != NOWHERE:
                return target, length + 1
            if state == ROOT:
                return ROOT, 0
            state = links[state]
            length = longest[state]

    def next(self, state: int) -> Continuation | None:
        """What mostly follows a state, of equals the newest; None where nothing or anything did."""
        token = self._token[state]
        if token < 0:
            return None
        target = self._target[state]
        fork = self._forks.get(state)
        counts = self._count
        if fork is None:
            return Continuation(token, target, counts[target], 1)
        if len(fork) >= self.MOST_EDGES:
            return None
        times = counts[target]
        for other, leads in fork.items():
            if counts[leads] >= times:
                token, target, times = other, leads, counts[leads]
        return Continuation(token, target, times, len(fork) + 1)

    def times(self, state: int) -> int:
        """How often the stretches of a state came, those that end a text included."""
        return self._count[state]

    def _grow(self, end: int, token: int) -> int:
        """A state for a text that was never seen, with edges from all its suffixes."""
        links, longest = self._link, self._longest
        state = self._new(longest[end] + 1)
        suffix = end
        while suffix >= ROOT:
            target = self.follow(suffix, token)
            if target != NOWHERE:
                if longest[target] != longest[suffix] + 1:
                    target = self._split(suffix, token, target)
                links[state] = target
                return state
            self._lead(suffix, token, state)
            suffix = links[suffix]
        return state

    def _split(self, suffix: int, token: int, target: int) -> int:
        """Part the shorter stretches of ``target`` from the longer: they end at more places."""
        links = self._link
        state = self._new(self._longest[suffix] + 1)
        links[state] = links[target]
        links[target] = state
        self._count[state] = self._count[target]
        self._token[state], self._target[state] = self._token[target], self._target[target]
        fork = self._forks.get(target)
        if fork is not None:
            self._forks[state] = dict(fork)
            self._edges += len(fork)
        while suffix >= ROOT and self.follow(suffix, token) == target:
            self._lead(suffix, token, state)
            suffix = links[suffix]
        return state

    def _new(self, length: int) -> int:
        self._longest.append(length)
        self._link.append(ROOT)
        self._count.append(0)
        self._token.append(-1)
        self._target.append(NOWHERE)
        return len(self._link) - 1

    def _lead(self, state: int, token: int, target: int) -> None:
        first = self._token[state]
        if first in (token, -1):
            self._token[state], self._target[state] = token, target
            return
        fork = self._forks.setdefault(state, {})
        self._edges += token not in fork
        fork[token] = target
