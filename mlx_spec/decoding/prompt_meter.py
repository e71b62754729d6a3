"""What is counted of prompts that are read: seconds and tokens, each token of a prompt once."""

from __future__ import annotations

from mlx_spec.decoding.meter import StepMeter
from mlx_spec.sequence import Sequence


class PromptMeter:
    """Hears what a ``Feeder`` reads; this one counts nothing."""

    def seconds(self, seconds: float) -> None:
        """A pass took so long."""

    def reused(self, sequence: Sequence, end: int) -> None:
        """A row's tokens before ``end`` came from the prefix cache."""

    def fed(self, sequence: Sequence, begin: int, end: int) -> None:
        """A row's tokens ``begin .. end - 1`` are computed."""

    def finished(self, sequence: Sequence) -> None:
        """A row is read; the first step computes its last token."""


class TargetPromptMeter(PromptMeter):
    """Counts what the target reads, in the decoder's totals and in the rows' own.

    Args:
        meter: the decoder's.
    """

    def __init__(self, meter: StepMeter) -> None:
        self._meter = meter

    def seconds(self, seconds: float) -> None:
        self._meter.prompt_seconds += seconds

    def reused(self, sequence: Sequence, end: int) -> None:
        read = self._read_on(sequence, end)
        sequence.reused += read
        self._meter.reused_tokens += read

    def fed(self, sequence: Sequence, begin: int, end: int) -> None:
        new = self._read_on(sequence, end)
        self._meter.recomputed_tokens += max(0, end - begin - new)

    def finished(self, sequence: Sequence) -> None:
        self._read_on(sequence, sequence.length, pending=0)

    def _read_on(self, sequence: Sequence, end: int, pending: int = 1) -> int:
        """How many tokens of a prompt are read for the first time."""
        known = max(sequence.read, min(end, len(sequence.prompt) - pending))
        new, sequence.read = known - sequence.read, known
        self._meter.prompt_tokens += new
        return new
