"""``RowIndex``: one request's text, indexed as it is said, and what it foretells.

It reads the tokens that the request is known to have said, in their order, and never a guess: what
was rejected is nowhere in them.
"""

from __future__ import annotations

from mlx_spec.decoding.drafters.guesses import Guess
from mlx_spec.decoding.drafters.suffixes.automaton import Continuation, SuffixAutomaton
from mlx_spec.decoding.drafters.suffixes.confirmation import Confirmation
from mlx_spec.decoding.drafters.suffixes.shared import SharedReader
from mlx_spec.decoding.drafters.suffixes.trust import Trust
from mlx_spec.sequence import Sequence


class _Lookup:
    """What follows the end of a text, as far as one index knows."""

    __slots__ = ("found", "index", "matched", "share")

    def __init__(self, index: SuffixAutomaton, state: int, matched: int, own: int) -> None:
        self.index, self.matched = index, matched
        self.found: Continuation | None = index.next(state)
        # The end itself has no continuation yet.
        times = index.times(state) - own
        self.share = 0.0 if self.found is None else min(1.0, self.found.times / max(times, 1))


class RowIndex:
    """The index of one row.

    Args:
        trust: shared by all rows of a drafter.
        shared: reads and writes the index that all rows share, if there is one.
        least: tokens that must match.
        floor: a draft goes on as long as all of it together has this chance.

    Attributes:
        confirmation: whether its guesses are verified.
    """

    def __init__(self, trust: Trust, shared: SharedReader | None, least: int, floor: float) -> None:
        self.confirmation = Confirmation()
        self._trust, self._shared, self._least, self._floor = trust, shared, least, floor
        self._own, self._end = SuffixAutomaton(), 0
        self._read = 0  # tokens
        self._lookup: _Lookup | None = None

    def hear(self, sequence: Sequence, most: int) -> int:
        """Take in what the row is known to have said, at most so many tokens.

        Returns:
            How many were taken.
        """
        begin, prompt = self._read, len(sequence.prompt)
        tokens = sequence.known(begin, begin + most)
        for place, token in enumerate(tokens, begin):
            if place >= prompt:
                self._judge(token)
            self._end = self._own.append(self._end, token)
            if self._shared is not None and place >= prompt - self._shared.CONTEXT:
                self._shared.append(token)
            self._read += 1
            if self._read >= prompt:
                self._lookup = self._look()
        return len(tokens)

    def caught_up(self, sequence: Sequence) -> bool:
        """Whether all that is known of the row was taken in."""
        return self._read == sequence.length

    def guesses(self, most: int) -> list[Guess]:
        """What is likely to follow, at most so many tokens."""
        lookup, made, product = self._lookup, list[Guess](), 1.0
        if lookup is None:
            return made
        found, share, matched = lookup.found, lookup.share, lookup.matched
        while found is not None and len(made) < most:
            chance = self._trust.chance(matched + len(made), share)
            product *= chance
            if product < self._floor:
                break
            made.append((found.token, chance))
            times = lookup.index.times(found.state)
            found = lookup.index.next(found.state)
            share = 0.0 if found is None else min(1.0, found.times / max(times, 1))
        return made

    def _judge(self, token: int) -> None:
        """Hold the last lookup against the token that came."""
        lookup = self._lookup
        if lookup is None or lookup.found is None:
            self.confirmation.judge(None)
            return
        right = lookup.found.token == token
        # What is too unlikely to be guessed is no wrong guess.
        likely = self._trust.chance(lookup.matched, lookup.share) >= self._floor
        self._trust.learn(lookup.matched, lookup.share, right)
        self.confirmation.judge(right if likely else None)

    def _look(self) -> _Lookup | None:
        """The longest match, of equals the row's own."""
        state, matched = self._own.repeated(self._end)
        best = _Lookup(self._own, state, matched, 1) if matched >= self._least else None
        if self._shared is None:
            return best
        for index, state, length, own in self._shared.matches():
            if length >= self._least and (best is None or length > best.matched):
                other = _Lookup(index, state, length, own)
                if other.found is not None:
                    best = other
        return best
