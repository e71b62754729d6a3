"""What a step was and what came of it, as policies are told."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from mlx_spec.control.row import Row


class StepWork(NamedTuple):
    """What a step computes, as far as its time depends on it.

    Policies and reports say the work, and only ``costs`` knows what is made of it: a cost that
    follows the tokens of a packed pass, or the context that is read, is a field here and another
    ``costs`` file.

    Attributes:
        rows: rows that take part.
        length: draft tokens of the longest row: passes of the drafter, and, with one token more,
            the width of the target's pass. It is a rectangle: a row that drafts less saves nothing.
    """

    rows: int
    length: int


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
        tokens: of the target's pass, those for nobody included; 0 where nobody says.
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

    @cached_property
    def work(self) -> StepWork:
        """What the step computed."""
        return StepWork(len(self.rows), max(self.lengths) if self.longest is None else self.longest)

    def of(self, source: str) -> StepReport:
        """What it says of one drafter's guesses; a step without any is everybody's."""
        if not self.work.length:
            return self
        own = [by == source for by in self.sources]
        lengths = [n if mine else 0 for n, mine in zip(self.lengths, own, strict=True)]
        # Of the other rows nothing was tested; -1 says that of any.
        accepted = [n if mine else min(n, 0) for n, mine in zip(self.accepted, own, strict=True)]
        return replace(self, lengths=lengths, accepted=accepted, longest=max(lengths))
