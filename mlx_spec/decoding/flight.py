"""A step on its way: what it may take, what was built, what came out.

``StepPlan`` is made before anything is built, ``Flight`` is the graph of a step, ``StepOutput``
(``outputs``) what the host read of it for one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_spec.control.report import StepReport
from mlx_spec.decoding.outputs import StepGains
from mlx_spec.decoding.outputs import StepOutput as StepOutput
from mlx_spec.decoding.watching import Extra
from mlx_spec.model.pace import Chunk
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class StepPlan:
    """What the next step may take.

    Attributes:
        rows: those that take part, in slot order.
        lengths: draft length of each row; 0 where the drafter cannot draft for it yet.
        shortest, longest: the host's bounds on the rows' known tokens.
        reading: what the drafter reads before it drafts, described and not launched.
        known: the rows' known tokens, where no step is in flight that may add to them.
        begins: which rows have nothing in the target's caches yet; empty where none has.
        opens: none has, and all texts are read by this step.
    """

    rows: list[Sequence]
    lengths: list[int]
    shortest: int
    longest: int
    reading: Chunk | None = None
    known: tuple[int, ...] | None = None
    begins: tuple[bool, ...] = ()
    opens: bool = False


@dataclass
class Flight:
    """A step that was built, and perhaps launched.

    It has rows of its own: members may have changed by the time it is read.

    Attributes:
        rows: sequences in the order of its results.
        lengths: draft length of each row.
        packed: [B, K + 3] int32: accepted count or ``NO_NUMBERS``, how many draft tokens counted,
            then the target's samples.
        known: [B] int32, the rows' known tokens after it.
        reading: what is launched before it, for the drafter.
        launched: when it was, in seconds of the decoder's clock.
        ahead: whether it was built while the one before computed.
        gone: rows that left since it was built, or are tried again: what it says of them is
            nobody's.
        extras: what else is read of it, together with ``packed``.
        sources: who guessed for each row, by name; "" where nobody did.
        computed: guesses one after the other that each drafter computed, by name; None: as many as
            the longest of its rows has.
        tokens: that the target's pass computes, padding included; prompts' are not counted.
        first: what is launched before all else.
        keys: that its rows have, each as many as the longest: what one token a row reads.
        unread: tokens of prompts that its pass reads, too.
        said: [B, K] float32, how sure the drafter is of each guess, where the device gave them to
            rows by that: then ``lengths`` are what each might have been given, until it is read.
        heard: the same as lists, of rows that were drafted for, once it was read.
        results: ``packed`` as lists, once it was read.
        outputs: what each row has gained, once it was emitted; None for those that are gone.
        seconds: what it took on the device, once it was read; without what prompts did.
        waited: before that the device did, in turn, while the step was described.
        clean: whether these hold no other work.
    """

    rows: list[Sequence]
    lengths: list[int]
    packed: mx.array
    known: mx.array
    reading: Chunk | None = None
    launched: float = 0.0
    ahead: bool = False
    gone: set[Sequence] = field(default_factory=set)
    extras: list[Extra] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    computed: Mapping[str, int] | None = None
    tokens: int = 0
    first: list[mx.array] = field(default_factory=list)
    keys: int = 0
    unread: int = 0
    said: mx.array | None = None
    heard: list[list[float]] = field(default_factory=list)
    results: list[list[int]] = field(default_factory=list)
    outputs: list[StepOutput | None] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0
    clean: bool = True

    @property
    def width(self) -> int:
        """Tokens that a row may gain at most."""
        return int(self.packed.shape[1]) - 2

    @property
    def passes(self) -> dict[str, int]:
        """Guesses one after the other of each drafter that ran, by name."""
        if self.computed is not None:
            return dict(self.computed)
        passes: dict[str, int] = {}
        for source, length in zip(self.sources, self.lengths, strict=True):
            if length:
                passes[source] = max(length, passes.get(source, 0))
        return passes

    def part_of_prompts(self) -> float:
        """Seconds of what it took that are its prompts', by tokens; taken out of its own."""
        part = self.seconds * self.unread / (self.unread + self.tokens)
        self.seconds -= part
        return part

    @property
    def filled(self) -> bool:
        """Whether the device chose among guesses, once it was read."""
        return sum(map(len, self.heard)) > sum(self.lengths)

    @property
    def wanted(self) -> list[mx.array]:
        """All that the host waits for."""
        said = [] if self.said is None else [self.said]
        return [self.packed, *said, *(array for extra in self.extras for array in extra.arrays)]

    def read(self) -> None:
        """See what was computed, and who was given how many guesses where the device said it."""
        if len(self.wanted) > 1:
            mx.eval(self.wanted)
        self.results = cast("list[list[int]]", self.packed.tolist())
        if self.said is not None:
            said = cast("list[list[float]]", self.said.tolist())
            self.heard = [own[:most] for own, most in zip(said, self.lengths, strict=True)]
            self.lengths = [result[1] for result in self.results]

    def report(self, accepted: list[int]) -> StepReport:
        """What policies learn from it, once it was read.

        Args:
            accepted: draft tokens of each row, or ``NO_NUMBERS`` where it says nothing of a draft.
        """
        return StepReport(
            self.rows,
            [result[1] for result in self.results],
            accepted,
            self.seconds + self.waited,
            self.clean and not self.unread,
            reading=self.reading.seconds if self.reading else 0.0,
            longest=max(self.lengths),
            sources=self.sources,
            tokens=self.tokens,
            keys=self.keys,
            passes=self.passes,
            said=self.heard,
        )

    def hand_out(self) -> None:
        """Give each watcher what it asked for; the rows have their tokens."""
        gains = StepGains(self.rows, self.results, self.outputs)
        for extra in self.extras:
            extra.watcher.take(gains, [np.asarray(array) for array in extra.arrays])
