"""Penalties for tokens that were said lately: repetition, presence, frequency.

Each looks at a window of the last tokens before a position, known ones and guesses, as mlx-lm's
processors look at the end of prompt and output. For a row that knows 5 tokens, a window of 3 and a
draft of 2::

    line       t2 t3 t4 d5 d6          the last 3 known tokens and the draft
    position 5 [t2 t3 t4]
    position 6    [t3 t4 d5]
    position 7       [t4 d5 d6]

Windows are gathered for all rows and positions at once; what stands before a text's beginning, or
is older than a row's own window, is marked -1. Only the entries of windows are written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import mlx.core as mx

from mlx_spec.config import SamplingParams
from mlx_spec.decoding.rules.base import RuleContext
from mlx_spec.decoding.rules.processors import Processor
from mlx_spec.decoding.rules.tokens import places_of
from mlx_spec.sequence import Sequence

P = TypeVar("P", bound="Penalty")


@dataclass(frozen=True, eq=False)
class Penalty(Processor):
    """One kind of penalty of some rows.

    Attributes:
        amounts: [b, 1, 1] float32.
        sizes: [b, 1, 1] int32, of the rows' windows.
        longest: of the windows; 0 where one is the whole text.
    """

    amounts: mx.array
    sizes: mx.array
    longest: int

    name: ClassVar[str]
    neutral: ClassVar[float] = 0.0

    @classmethod
    def wanted(cls, sampling: SamplingParams) -> bool:
        """Whether it changes anything."""
        return cls._amount(sampling) != cls.neutral

    @classmethod
    def of(cls: type[P], sequences: Seq[Sequence]) -> P:
        """Those of these rows; rows that want none do not widen the windows."""
        options = [sequence.sampling for sequence in sequences]
        wanting = [cls.wanted(option) for option in options]
        own = [getattr(option, f"{cls.name}_context_size") for option in options]
        sizes = [size if wants else 1 for size, wants in zip(own, wanting, strict=True)]
        amounts = mx.array([cls._amount(option) for option in options], mx.float32)
        whole = mx.array([size or 2**30 for size in sizes], mx.int32)
        longest = 0 if 0 in sizes else max(sizes)
        return cls(amounts[:, None, None], whole[:, None, None], longest)

    @classmethod
    def _amount(cls, sampling: SamplingParams) -> float:
        amount: float = getattr(sampling, f"{cls.name}_penalty")
        return amount

    def process(self, logits: mx.array, context: RuleContext) -> mx.array:
        """In the type of the logits, as mlx-lm does."""
        windows = windows_of(context, self.sizes, self.longest)
        return self.penalize(logits, windows, self.amounts.astype(logits.dtype))

    @abstractmethod
    def penalize(self, logits: mx.array, windows: mx.array, amounts: mx.array) -> mx.array:
        """Logits [b, N, V] under windows [b, N, W]."""


def windows_of(context: RuleContext, sizes: mx.array, longest: int) -> mx.array:
    """[b, N, W] int32: the tokens before each position, -1 where a window holds none.

    Args:
        context: the rows.
        sizes: [b, 1, 1], how far back each row looks.
        longest: the most of them; 0 for the whole text.
    """
    width = context.tokens.shape[1] + context.draft.shape[1]
    width = min(longest, width) if longest else width
    back = mx.arange(width, dtype=mx.int32)
    at = context.lengths[:, None] - width + back
    line = mx.take_along_axis(context.tokens, mx.maximum(at, 0), axis=1)
    line = mx.concatenate([line, context.draft], axis=1)
    beyond = context.positions - context.lengths[:, None]
    inside = beyond[..., None] + back
    found = mx.take_along_axis(line, inside.reshape(len(line), -1), axis=1).reshape(inside.shape)
    there = (context.positions[..., None] - width + back >= 0) & (back >= width - sizes)
    return mx.where(there, found, -1)


def _once(logits: mx.array, windows: mx.array, change: Callable[[mx.array], mx.array]) -> mx.array:
    """Logits with those of each window's tokens changed, once each.

    A token that stands twice is written twice, the same number; so places that hold none may stand
    for one that does.
    """
    places, known = places_of(windows, logits)
    tokens = places[2]
    some = known.argmax(axis=-1, keepdims=True)
    tokens = mx.where(known, tokens, mx.take_along_axis(tokens, some, axis=-1))
    own = mx.take_along_axis(logits, tokens, axis=-1)
    # A draft may lack all of them.
    changed = mx.where(known.any(axis=-1, keepdims=True), change(own), own)
    return mx.put_along_axis(logits, tokens, changed, axis=-1)


class RepetitionPenalty(Penalty):
    """Positive logits divided, negative ones multiplied."""

    name = "repetition"
    neutral = 1.0

    @classmethod
    def _amount(cls, sampling: SamplingParams) -> float:
        return sampling.repetition_penalty or cls.neutral

    def penalize(self, logits: mx.array, windows: mx.array, amounts: mx.array) -> mx.array:
        """Once for a token, however often it stands in a window."""
        return _once(logits, windows, lambda own: mx.where(own < 0, own * amounts, own / amounts))


class PresencePenalty(Penalty):
    """An amount off tokens that stand in the window."""

    name = "presence"

    def penalize(self, logits: mx.array, windows: mx.array, amounts: mx.array) -> mx.array:
        """Once for a token."""
        return _once(logits, windows, lambda own: own - amounts)


class FrequencyPenalty(Penalty):
    """An amount off for each time that a token stands in the window."""

    name = "frequency"

    def penalize(self, logits: mx.array, windows: mx.array, amounts: mx.array) -> mx.array:
        """One time after another, as mlx-lm does: rounding is the same."""
        places, known = places_of(windows, logits)
        return logits.at[places].subtract(mx.where(known, amounts, 0))
