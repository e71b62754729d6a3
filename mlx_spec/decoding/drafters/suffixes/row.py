"""``RowIndex``: one request's text, indexed as it is said, and what it foretells.

It reads the tokens that the request is known to have said, in their order, and never a guess: what
was rejected is nowhere in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.decoding.drafters.guesses import Guess
from mlx_spec.decoding.drafters.suffixes.automaton import Continuation, Match, SuffixAutomaton
from mlx_spec.decoding.drafters.suffixes.confirmation import Confirmation
from mlx_spec.decoding.drafters.suffixes.shared import SharedReader
from mlx_spec.decoding.drafters.suffixes.trust import Trust
from mlx_spec.sequence import Sequence


class _Lookup:
    """What follows the end of a text, as far as one index knows, and how far that is believed."""

    __slots__ = ("chance", "found", "index", "matched", "share", "trust")

    def __init__(self, place: Match, trust: Trust, found: Continuation) -> None:
        self.index, self.matched, self.trust, self.found = place.within, place.length, trust, found
        # The end itself has no continuation yet.
        times = place.within.times(place.state) - place.own
        self.share = min(1.0, found.times / max(times, 1))
        self.chance = trust.chance(self.matched, self.share)


@dataclass(frozen=True)
class Lookups:
    """What all rows of a drafter look up alike.

    Attributes:
        own, others: how far matches with a row's own text and with all texts are believed.
        least: tokens that must match.
        floor: a draft goes on as long as all of it together has this chance.
    """

    own: Trust
    others: Trust
    least: int
    floor: float


class RowIndex:
    """The index of one row.

    Args:
        lookups: the same for all rows.
        shared: reads and writes the index that all rows share, if there is one.

    Attributes:
        confirmation: whether its guesses are verified.
    """

    def __init__(self, lookups: Lookups, shared: SharedReader | None) -> None:
        self.confirmation = Confirmation()
        self._how, self._shared = lookups, shared
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
        lookup, made = self._lookup, list[Guess]()
        if lookup is None:
            return made
        index, found, chance = lookup.index, lookup.found, lookup.chance
        product = chance
        while product >= self._how.floor and len(made) < most:
            made.append((found.token, chance))
            times, following = index.times(found.state), index.next(found.state)
            if following is None:
                break
            share = min(1.0, following.times / max(times, 1))
            chance = lookup.trust.chance(lookup.matched + len(made), share)
            product *= chance
            found = following
        return made

    def _judge(self, token: int) -> None:
        """Hold the last lookup against the token that came."""
        lookup = self._lookup
        if lookup is None:
            self.confirmation.judge(None)
            return
        right = lookup.found.token == token
        lookup.trust.learn(lookup.matched, lookup.share, right)
        # What is too unlikely to be guessed is no wrong guess.
        self.confirmation.judge(right if lookup.chance >= self._how.floor else None)

    def _look(self) -> _Lookup | None:
        """The longest match with the row's own text, or a longer one that promises more."""
        best = self._at(self._own.repeated(self._end), self._how.own)
        if self._shared is None:
            return best
        for place in self._shared.matches():
            if best is None or place.length > best.matched:
                other = self._at(place, self._how.others)
                if other is not None and (best is None or other.chance > best.chance):
                    best = other
        return best

    def _at(self, place: Match, trust: Trust) -> _Lookup | None:
        """What follows a place where the end of the text was found."""
        if place.length < self._how.least:
            return None
        found = place.within.next(place.state)
        return None if found is None else _Lookup(place, trust, found)
