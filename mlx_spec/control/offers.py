"""Several drafters in one step: what those offer that look up, and what is taken of it.

*Free* drafters look their guesses up on the host and say how far they go and how likely each is.
A *costly* one computes, for all rows at once. Rows with a guess that was found need no other, so
whether the costly one is worth its time is known only after the free ones have answered.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from mlx_spec.control.filling import Filling
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.row import Row, room_of

NOBODY = -1


@dataclass(frozen=True)
class Offer:
    """What one free drafter has found.

    Attributes:
        source: its name.
        lengths: guesses of each row.
        chances: of each row and guess, how likely it is right if those before it are; None where
            the drafter does not know.
    """

    source: str
    lengths: Seq[int]
    chances: Seq[Seq[float]] | None = None


@dataclass(frozen=True)
class Settled:
    """What is taken.

    Attributes:
        picks: which offer each row takes, or ``NOBODY``: those rows take the costly one's guess.
        lengths: guesses of each row.
        costly: whether the costly drafter is asked.
        reads: whether it is asked how sure it is of each guess; ``SourceChoice.pick`` is told.
        filling: how the device gives guesses to rows, where it does; ``lengths`` are what they get
            if the drafter does not say how sure it is.
    """

    picks: list[int]
    lengths: list[int]
    costly: bool
    reads: bool = False
    filling: Filling | None = None


class SourceChoice(DraftLengthPolicy, Protocol):
    """Chooses among drafters, and how far each goes.

    Attributes:
        free: whether guesses that are looked up are wanted now.
        costly: the costly drafter in use, by name; empty where there is none.
        drafts: whether that one is wanted in the step that was chosen last.
        turning: whether another costly one is to be used from the next step on, before which no
            step may be in flight.
        picks: whether, of the next step, the guesses that are verified are picked when it is known
            how sure the costly drafter is of each: then that must be read, in turn.
    """

    costly: str
    drafts: bool

    @property
    def free(self) -> bool:
        """See above."""
        ...

    @property
    def turning(self) -> bool:
        """See above."""
        ...

    @property
    def picks(self) -> bool:
        """See above."""
        ...

    def enough(self, rows: Seq[Row], sure: Seq[Seq[float]]) -> bool:
        """Whether one guess more of each row is not worth its time; arguments as for ``pick``."""
        ...

    def pick(self, rows: Seq[Row], sure: Seq[Seq[float]]) -> list[int]:
        """Guesses of each row that are verified, of those that were settled on.

        Args:
            rows: those of the last choice.
            sure: how probable the costly drafter thinks each of its guesses.
        """
        ...

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """What is taken, now that the free ones have answered.

        Args:
            rows: those of the last choice.
            offers: what was found; perhaps nothing.
            covered: rows for which the costly drafter can guess now.
        """
        ...


class FixedSources(FixedDraftLength):
    """Always the same length: what was found is taken, the other rows are drafted for."""

    free = True
    turning = picks = False

    def __init__(self, length: int, costly: Seq[str] = ()) -> None:
        super().__init__(length)
        self.costly = costly[0] if costly else ""
        self.drafts = bool(self.costly)

    def enough(self, rows: Seq[Row], sure: Seq[Seq[float]]) -> bool:
        """Nobody is asked how sure he is."""
        return False

    def pick(self, rows: Seq[Row], sure: Seq[Seq[float]]) -> list[int]:
        """Nobody is."""
        raise NotImplementedError("[FixedSources.pick] all that was settled on is verified")

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """The first offer that each row has."""
        picks = first_offers(len(rows), offers)
        lengths = [0 if pick == NOBODY else offers[pick].lengths[i] for i, pick in enumerate(picks)]
        lacking = [
            pick == NOBODY and known and bool(room)
            for pick, known, room in zip(picks, covered, room_of(rows), strict=True)
        ]
        if not self.drafts or not any(lacking):
            return Settled(picks, lengths, costly=False)
        lengths = [self.length if lack else n for lack, n in zip(lacking, lengths, strict=True)]
        return Settled(picks, lengths, costly=True)


def first_offers(rows: int, offers: Seq[Offer]) -> list[int]:
    """For each row the first offer that says something for it."""
    return [
        next((i for i, offer in enumerate(offers) if offer.lengths[row]), NOBODY)
        for row in range(rows)
    ]
