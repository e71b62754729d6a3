"""``Riding``: what a draft model's caches lack of each row, and how it is read before a proposal.

A few known tokens ride in the first draft pass. Where rolling back is assigning a length, tokens
may be read twice, so that all rows read the same number up to their ends and the host need not know
them: in the steady state two, whatever was accepted. A state that tokens were folded into must read
each of them once (``FoldedRiding``): it stays what it was after the known tokens, which the guesses
read after them do not change, and each row reads what it has gained since::

    known        a b c | d e f          gained d e f since the last proposal: f is pending
    entries      a b c   d e f          reads e f, and d again if another row gained less
                         . e f
    states       a b c > d e f          reads d e f from the state after c; rows that gained less
                                        are padded (``Rows.counts``)
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import ClassVar

import mlx.core as mx

from mlx_spec.decoding.drafters.base import DraftContext
from mlx_spec.sequence import Sequence

# After a proposal the cache lacks the last draft token, if it was accepted, and the pending one.
STEADY_LAG = 2
# A lag up to this rides in the first draft pass; more is read beforehand, without logits.
MAX_RIDE = 8


@dataclass(frozen=True)
class Ride:
    """What the first draft pass reads.

    Attributes:
        starts: [B] int32, position of each row's first token.
        width: tokens of a row, N.
        limit: at least every row's start + N.
        at: the starts as numbers, where the host knows them.
        counts: [B] int32, how many of the N are a row's own; None where all are.
        last: [B] int32, the place of each row's last known token among the N; None for the last.
    """

    starts: mx.array
    width: int
    limit: int
    at: tuple[int, ...] | None
    counts: mx.array | None = None
    last: mx.array | None = None


@dataclass
class Riding:
    """Rows whose caches hold entries by position.

    Attributes:
        lag: known tokens that a row's caches may lack; None while the Feeder has the row.
        holds: tokens that they hold for sure, of a row that gained an unknown number since by the
            guesses of others; None where ``lag`` is known.
        ride: the most that rides.
        spare: positions beyond a row's known tokens that a ride may write to.
    """

    lag: list[int | None] = field(default_factory=list)
    holds: list[int | None] = field(default_factory=list)
    ride: int = MAX_RIDE
    spare: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.holds = self.holds or [None] * len(self.lag)

    def join(self, count: int) -> None:
        """Rows come, at the end: the Feeder has them."""
        self.lag += [None] * count
        self.holds += [None] * count

    def keep(self, order: Seq[int]) -> None:
        """New row i was row ``order[i]``."""
        self.lag = [self.lag[row] for row in order]
        self.holds = [self.holds[row] for row in order]

    def copy(self) -> Riding:
        """The same, to be gone back to."""
        return replace(self, lag=list(self.lag), holds=list(self.holds))

    def board(self, row: int, seen: int, length: int) -> None:
        """The Feeder has read ``seen`` of ``length`` tokens and lets the row go."""
        self.lag[row] = length - seen

    def far(self, row: int) -> bool:
        """Whether a row that rides lacks too much."""
        lag = self.lag[row]
        return lag is not None and lag > self.ride and self.holds[row] is None

    def seen(self, row: int, length: int) -> int:
        """Tokens from the first on that a riding row's caches hold for sure."""
        held = self.holds[row]
        return max(0, length - (self.lag[row] or 0)) if held is None else held

    def covers(self) -> list[bool]:
        """Rows that lag by no more than rides."""
        return [
            lag is not None and lag <= self.ride and held is None
            for lag, held in zip(self.lag, self.holds, strict=True)
        ]

    def skip(self, rows: Seq[Sequence], most: int = 1) -> None:
        """Each riding row lacks one token more; or up to ``most``, where no step is in flight."""
        for row, lag in enumerate(self.lag):
            if lag is not None and self.holds[row] is None:
                if most > 1:
                    self.holds[row] = self.seen(row, rows[row].length)
                else:
                    self.lag[row] = lag + 1

    def count(self, rows: Seq[Sequence]) -> None:
        """No step is in flight: what others' guesses have added to rows is known."""
        for row, held in enumerate(self.holds):
            if held is not None:
                self.lag[row], self.holds[row] = rows[row].length - held, None

    def look(self, rows: Seq[Sequence]) -> None:
        """The host knows what it did not know when it drafted last."""

    def first(self, context: DraftContext) -> Ride:
        """What the first pass of a proposal reads: what the row that lags most lacks, of each.

        Rows that lag far behind ride along for nothing: what is written for them is garbage, and
        written again when they are read. Where that would go round to what they hold, ``counts``
        says that it is nobody's.
        """
        width, covered = self._width(), self.covers()
        starts = mx.maximum(context.lengths - width, 0)
        known, at = context.known, None
        if known is not None:
            at = tuple(max(0, length - width) for length in known)
        counts = None if all(covered) else width * mx.array(covered, mx.int32)
        last = None if context.shortest >= width else context.lengths - 1 - starts
        return Ride(starts, width, max(context.longest, width), at, counts, last)

    def _width(self) -> int:
        return max(lag for lag in self.lag if lag is not None and lag <= self.ride)

    def proposed(self, context: DraftContext, count: int) -> None:
        """What rows lack when the step is taken for which ``count`` tokens were proposed."""
        covered, steady = self.covers(), self._steady(count)
        for row, taken in enumerate(context.taken):
            if taken and self.lag[row] is not None:
                # Its caches hold what it knows now, and behind that what was not its draft.
                assert context.known is not None
                length = context.known[row]
                self.holds[row] = length if covered[row] else self.seen(row, length)
        self.lag = [
            lag if lag is None else steady if known else lag + 1
            for lag, known in zip(self.lag, covered, strict=True)
        ]

    def _steady(self, count: int) -> int:
        return STEADY_LAG


@dataclass
class FoldedRiding(Riding):
    """Rows whose caches hold states: each known token is read once.

    ``held`` is what a row's states stand for, in tokens. The host knows it one step late: what is
    drafted for while a step is in flight is known when that one was read (``look``).

    Attributes:
        held: tokens; None while the Feeder has the row, or until the host knows.
    """

    held: list[int | None] = field(default_factory=list)
    spare: ClassVar[int] = MAX_RIDE

    def join(self, count: int) -> None:
        super().join(count)
        self.held += [None] * count

    def keep(self, order: Seq[int]) -> None:
        super().keep(order)
        self.held = [self.held[row] for row in order]

    def copy(self) -> Riding:
        return replace(self, lag=list(self.lag), holds=list(self.holds), held=list(self.held))

    def board(self, row: int, seen: int, length: int) -> None:
        super().board(row, seen, length)
        self.held[row] = seen

    def seen(self, row: int, length: int) -> int:
        held = self.held[row]
        assert held is not None
        return held

    def look(self, rows: Seq[Sequence]) -> None:
        for row, sequence in enumerate(rows):
            if self.lag[row] is not None and self.held[row] is None:
                self.held[row] = sequence.length

    def first(self, context: DraftContext) -> Ride:
        covered, known = self.covers(), context.known
        # Of the others nothing is read; where they stand does not matter.
        at = tuple(
            held if held is not None and own else 1
            for held, own in zip(self.held, covered, strict=True)
        )
        if known is None:
            width = self._width()
        else:
            lacking = zip(known, at, covered, strict=True)
            width = max(length - held for length, held, own in lacking if own)
        starts = mx.array(at, mx.int32)
        counts = mx.where(mx.array(covered), context.lengths - starts, 0)
        limit = max(context.longest, max(at) + width)
        return Ride(starts, width, limit, at, counts, mx.maximum(counts - 1, 0))

    def proposed(self, context: DraftContext, count: int) -> None:
        for row, own in enumerate(self.covers()):
            if own:
                self.held[row] = None if context.known is None else context.known[row]
        super().proposed(context, count)
        # However many were proposed, what the row gains by them rides.
        self.ride = max(MAX_RIDE, count + 1)

    def _steady(self, count: int) -> int:
        return count + 1
