"""What control sees of a row: how much it may still emit, and what was learned of it so far.

The evidence is a slot on the request's own record, not a dictionary beside it: it costs an
attribute to find, goes when the request goes, and stays with a request that is suspended and
comes back. A row belongs to one decoder at a time, and only that decoder's policy touches it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from mlx_spec.control.shifts import TestedGuesses


@dataclass(slots=True)
class RowEvidence(TestedGuesses):
    """What the steps of one row have shown of one drafter.

    Attributes:
        promised, kept: of verified guesses of which the drafter said how sure it was, recent ones
            weighing more: how many were to stand by that, and how many did.
        counted: whether the rate of newcomers has the row.
        drafted: whether the row was ever drafted for, so that the drafter has read its text.
    """

    promised: float = 0.0
    kept: float = 0.0
    counted: bool = False
    drafted: bool = False


# Of each drafter, by name; "" where only one drafts.
Evidence = dict[str, RowEvidence]


class Row(Protocol):
    """A request, as far as control is concerned.

    Attributes:
        evidence: None until the row's first step is observed.
    """

    evidence: Evidence | None

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted; none or fewer for a row that has ended."""
        ...

    @property
    def room(self) -> int:
        """The most draft tokens that it can use: one token of a step is the target's own, and a
        request may want fewer, or none."""
        ...

    @property
    def length(self) -> int:
        """Known tokens, which attention reads."""
        ...

    @property
    def brings_guesses(self) -> bool:
        """Whether its request brings guesses itself: by a constraint, or a prediction."""
        ...


def evidence_of(row: Row, source: str = "") -> RowEvidence:
    """The row's evidence of a drafter, made when it is first asked for."""
    evidence = row.evidence
    if evidence is None:
        evidence = row.evidence = {}
    if source not in evidence:
        evidence[source] = RowEvidence()
    return evidence[source]


def known_evidence(row: Row, source: str = "") -> RowEvidence | None:
    """The row's evidence of a drafter, if there is any."""
    evidence = row.evidence
    return None if evidence is None else evidence.get(source)


class KnownRows:
    """Evidence of one drafter for a batch, whose rows are mostly those of the step before.

    Args:
        source: the drafter, by name.
    """

    def __init__(self, source: str = "") -> None:
        self._source = source
        self._rows: list[Row] = []
        self._own: list[RowEvidence] = []

    def of(self, rows: Seq[Row]) -> list[RowEvidence]:
        """In the order of the rows; made for those who are new."""
        if rows != self._rows:
            self._own = [evidence_of(row, self._source) for row in rows]
            self._rows = list(rows)
        return self._own


def cap_lengths(rows: Seq[Row], length: int) -> list[int]:
    """``length`` for each row, but no draft token past a row's last possible one."""
    return cap(room_of(rows), length)


def room_of(rows: Seq[Row]) -> list[int]:
    """The most draft tokens that each row can use."""
    return [row.room for row in rows]


def cap(room: list[int], length: int) -> list[int]:
    """``length``, or what there is room for."""
    if not room or min(room) >= length:
        return [length] * len(room)
    return [length if length < most else most for most in room]
