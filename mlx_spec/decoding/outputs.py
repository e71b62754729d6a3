"""What came out of a step: for one sequence, and for all rows."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class StepOutput:
    """What one step emitted for one sequence.

    Attributes:
        sequence: the sequence; its ``finish_reason`` is set if it ended in this step.
        tokens: the emitted tokens; none where the row has failed.
        drafted: draft tokens verified, those past the sequence's end not counted.
        accepted: how many of ``tokens``, from the first on, the drafter proposed.
        source: the drafter, by name; empty where nothing was drafted.
    """

    sequence: Sequence
    tokens: list[int]
    drafted: int
    accepted: int
    source: str = ""


@dataclass(frozen=True)
class StepGains:
    """A step that was read, its tokens handed to its rows.

    Attributes:
        rows: those that took part, in row order.
        results: of each [accepted, drafted, *samples]: all of them, those past its end too.
        outputs: what it gained; None where what the step says of it is nobody's.
    """

    rows: list[Sequence]
    results: list[list[int]]
    outputs: list[StepOutput | None]
