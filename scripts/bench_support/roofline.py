"""What speculation could be worth at most here: the measured cost of passes, and what a draft of
each length really brought.

A step of fixed draft length K that computes M tokens and brings G costs T(M), the keys that its
tokens read, and K guesses. What Python, sampling and the reading of results take is not in it, nor
what it costs to find the best length: that much less is reached. Guesses picked one by one bring
more for the same M, so it may also be passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.shared import costs_of


@dataclass(frozen=True)
class FixedSteps:
    """The average step of one fixed draft length.

    Attributes:
        length: K; 0 for plain decoding.
        rows, tokens, gain: that took part, that were computed, and that were brought.
    """

    length: int
    rows: float
    tokens: float
    gain: float

    @classmethod
    def of(cls, length: int, stats: Any) -> FixedSteps:
        """Of a call's statistics."""
        steps = max(stats.steps, 1)
        return cls(
            length,
            stats.row_steps / steps,
            stats.computed / steps,
            stats.generation_tokens / steps,
        )


@dataclass(frozen=True)
class Ceiling:
    """Prices of steps.

    Attributes:
        target, draft: what passes cost, and a guess.
    """

    target: PassCosts
    draft: PassCosts

    @classmethod
    def of(cls, model: Any, head: Any) -> Ceiling:
        """As they were timed in this process, or before."""
        return cls(costs_of(model), costs_of(model, head, "head"))

    @classmethod
    def of_models(cls, model: Any, draft_model: Any) -> Ceiling:
        """The same where a model drafts."""
        return cls(costs_of(model), costs_of(draft_model))

    def seconds(self, step: FixedSteps, keys: float) -> float:
        """Of a step whose tokens read so many keys each."""
        tokens = max(1, round(step.tokens))
        verify = self.target.seconds(tokens, round(tokens * keys))
        return verify + step.length * self.draft.seconds(max(1, round(step.rows)))

    def over_plain(
        self, plain: FixedSteps, fixed: Sequence[FixedSteps], keys: float
    ) -> Mapping[int, float]:
        """Speed over plain decoding of each fixed length, if steps took nothing but this."""
        own = plain.gain / self.seconds(plain, keys)
        return {step.length: step.gain / self.seconds(step, keys) / own for step in fixed}


def mean_keys(prompts: Sequence[int], rows: int, tokens: int) -> float:
    """Keys that a token reads on average: those of the longest of the rows beside it.

    Args:
        prompts: tokens of each, in the order in which rows take them.
        rows: at a time.
        tokens: that each says.
    """
    groups = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    return sum(max(group) for group in groups) / len(groups) + tokens / 2
