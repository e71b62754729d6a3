"""What a step was and what came of it, as policies are told."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mlx_spec.control.row import Row


class StepWork(NamedTuple):
    """What a step computes, as far as its time depends on it.

    Reports say the work, and only ``pass_costs`` and ``step_prices`` know what is made of it.

    Attributes:
        rows: rows that take part.
        length: draft tokens of the longest row: passes of the drafter, and, with one token more,
            the most that one row verifies.
        tokens: that the target's pass computed, padding included; 0 where that is not said.
        keys: that its rows have, each as many as the longest: all are read by one token a row.
    """

    rows: int
    length: int
    tokens: int = 0
    keys: int = 0


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        rows: the rows that took part, in row order.
        lengths: draft tokens of each row that counted.
        accepted: accepted draft tokens of each row; -1 where a row's result says nothing of its
            draft (it had ended before the step, or its logits were no numbers).
        seconds: of the step alone, from its launch (or the end of the work before it) to its
            result; where it was taken in turn, with those in which the device waited for the host.
        clean: False if ``seconds`` holds other work too, so that it says little of the next step.
        reading: seconds that the drafter spent reading texts for this step, where they are
            measured apart from ``seconds``.
        longest: draft tokens that were computed for each row; None where it is the most of
            ``lengths``.
        sources: who guessed for each row, by name, "" for nobody; empty where only one drafts.
        tokens: that the target's pass computed, padding included; 0: a rectangle of ``longest``.
        keys: as ``StepWork`` has them; 0 where that is not said.
        passes: guesses one after the other of each drafter that ran, by name.
        said: of a step that was filled on the device, how probable the drafter thought each guess
            of each row; none of rows that it does not draft for.
    """

    rows: Seq[Row]
    lengths: Seq[int]
    accepted: Seq[int]
    seconds: float
    clean: bool
    reading: float = 0.0
    longest: int | None = None
    sources: Seq[str] = ()
    tokens: int = 0
    keys: int = 0
    passes: Mapping[str, int] = field(default_factory=dict)
    said: Seq[Seq[float]] = ()
    work: StepWork = field(init=False)

    def __post_init__(self) -> None:
        """See what was computed: everybody asks, and to remember who was first takes a lock."""
        longest = max(self.lengths, default=0) if self.longest is None else self.longest
        rectangle = len(self.rows) * (longest + 1)
        work = StepWork(len(self.rows), longest, self.tokens or rectangle, self.keys)
        object.__setattr__(self, "work", work)

    def of(self, source: str) -> StepReport:
        """What it says of one drafter's guesses; a step without any is everybody's."""
        if not self.work.length or {*self.sources} <= {source, ""}:
            return self
        own = [by == source for by in self.sources]
        lengths = [n if mine else 0 for n, mine in zip(self.lengths, own, strict=True)]
        # Of the other rows nothing was tested; -1 says that of any.
        accepted = [n if mine else min(n, 0) for n, mine in zip(self.accepted, own, strict=True)]
        return replace(self, lengths=lengths, accepted=accepted, longest=max(lengths))
