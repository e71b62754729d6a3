"""Stand-ins at the seams: drafters of known quality and draft-length policies of known raggedness.

They implement the public protocols, so nothing of the engine is patched to use them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import cap_lengths
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


class CorruptingDrafter(ModelDrafter):
    """Drafts with the target itself, then spoils the tokens at chosen positions.

    Args:
        model: the target (so that without spoiling every draft is accepted).
        spoil: maps positions [B, K] to booleans [B, K].
        vocabulary: tokens are spoilt to ``(token + 1) % vocabulary``.
    """

    def __init__(
        self, model: Any, rows: int, spoil: Callable[[mx.array], mx.array], vocabulary: int
    ) -> None:
        super().__init__(ModelRunner(model, rows))
        self._spoil = spoil
        self._vocabulary = vocabulary

    def propose(self, context: DraftContext, count: int) -> Draft:
        draft = super().propose(context, count).tokens
        positions = context.lengths[:, None] + mx.arange(count, dtype=mx.int32)
        wrong = (draft + 1) % self._vocabulary
        return Draft(mx.where(self._spoil(positions), wrong, draft))


def never(positions: mx.array) -> mx.array:
    """A perfect drafter."""
    return positions < 0


def always(positions: mx.array) -> mx.array:
    """A hostile drafter: every proposal is wrong."""
    return positions >= 0


def every_fifth(positions: mx.array) -> mx.array:
    """Wrong at each position divisible by 5, right elsewhere."""
    return positions % 5 == 0


class KnowingDrafter(BaseDrafter):
    """Knows what the target will say, and spoils some of it.

    Args:
        texts: prompt and expected tokens of each request, by ``Sequence.index``.
        acceptance: share of positions at which it is right, always the same ones.
        vocabulary: tokens are spoilt to ``(token + 1) % vocabulary``.
    """

    def __init__(self, texts: Seq[Seq[int]], acceptance: float, vocabulary: int) -> None:
        longest = max(len(text) for text in texts)
        right = mx.array([[*text, *[0] * (longest - len(text))] for text in texts], mx.int32)
        spoilt = mx.random.uniform(shape=right.shape, key=mx.random.key(5)) >= acceptance
        self._said = mx.where(spoilt, (right + 1) % vocabulary, right)

    def propose(self, context: DraftContext, count: int) -> Draft:
        said = self._said[mx.array([row.index for row in context.sequences])]
        positions = context.lengths[:, None] + mx.arange(count, dtype=mx.int32)
        positions = mx.minimum(positions, said.shape[1] - 1)
        return Draft(mx.take_along_axis(said, positions, axis=1))


class RaggedPolicy:
    """Another draft length for every row and step, 0 to ``most``."""

    def __init__(self, most: int = 6, seed: int = 0) -> None:
        self._most = most
        self._random = random.Random(seed)

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        # Past a row's end on purpose, now and then: the end is looked for inside the run.
        return [self._random.randint(0, self._most) for _ in rows]

    def observe(self, report: StepReport) -> None:
        assert len(report.rows) == len(report.lengths) == len(report.accepted)
        for length, accepted in zip(report.lengths, report.accepted, strict=True):
            assert -1 <= accepted <= length  # -1: it says nothing of this row

    def forget(self) -> None:
        """The next choice is as random as the dropped one."""


class CyclingPolicy:
    """Draft lengths in a fixed order, the same for all rows."""

    def __init__(self, lengths: Seq[int]) -> None:
        self._lengths = list(lengths)
        self._turn = 0

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        length = self._lengths[self._turn % len(self._lengths)]
        self._turn += 1
        return cap_lengths(rows, length)

    def observe(self, report: StepReport) -> None:
        """Nothing to learn."""

    def forget(self) -> None:
        """Take the dropped turn again."""
        self._turn -= 1


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True
