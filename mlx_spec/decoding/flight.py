"""A step on its way: what it may take, what was built, what came out.

``StepPlan`` is made before anything is built, ``Flight`` is the graph of a step, ``StepOutput``
what the host read of it for one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class StepOutput:
    """What one step emitted for one sequence.

    Attributes:
        sequence: the sequence; its ``finish_reason`` is set if it ended in this step.
        tokens: the emitted tokens; none where the row has failed.
        drafted: draft tokens verified, those past the sequence's end not counted.
        accepted: how many of ``tokens``, from the first on, the drafter proposed.
    """

    sequence: Sequence
    tokens: list[int]
    drafted: int
    accepted: int


@dataclass(frozen=True)
class StepPlan:
    """What the next step may take.

    Attributes:
        rows: those that take part, in slot order.
        lengths: draft length of each row, before the drafter is asked.
        shortest, longest: the host's bounds on the rows' known tokens.
        joined: whether rows take part that the step before did not have.
    """

    rows: list[Sequence]
    lengths: list[int]
    shortest: int
    longest: int
    joined: bool = False


@dataclass
class Flight:
    """A step that was built, and perhaps launched.

    It has rows of its own: members may have changed by the time it is read.

    Attributes:
        rows: sequences in the order of its results.
        lengths: draft length of each row.
        packed: [B, K + 2] int32: accepted count or ``NO_NUMBERS``, then the target's samples.
        known: [B] int32, the rows' known tokens after it.
        clean: its time tells what such a step costs.
        launched: when it was, in seconds of the decoder's clock.
        ahead: whether it was built while the one before computed.
        gone: rows that left since it was built, or are tried again: what it says of them is
            nobody's.
        results: ``packed`` as lists, once it was read.
    """

    rows: list[Sequence]
    lengths: list[int]
    packed: mx.array
    known: mx.array
    clean: bool
    launched: float = 0.0
    ahead: bool = False
    gone: set[Sequence] = field(default_factory=set)
    results: list[list[int]] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Tokens that a row may gain at most."""
        return int(self.packed.shape[1]) - 1
