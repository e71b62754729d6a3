"""What may be done to logits before tokens are chosen.

A rule is a function on the device; one that must see the draft on the host first (a grammar)
says so by ``needs_host``, and steps are then taken in turn (``drivers``).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import mlx.core as mx

from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class RuleContext:
    """What a rule may look at.

    Attributes:
        tokens: [B, C] int32, known tokens of each row from position 0; garbage past its end.
        positions: [B, N] int32, of the tokens to choose; ``positions[:, 0]`` are the lengths.
        draft: [B, N - 1] int32, guesses for all of them but the last.
    """

    tokens: mx.array
    positions: mx.array
    draft: mx.array


class LogitsRule:
    """Changes logits; the base of all rules, which changes nothing."""

    needs_host: bool = False

    def see(self, rows: Seq[Sequence], draft: list[list[int]]) -> None:
        """Before :meth:`apply`, where ``needs_host``: the rows and their drafts, on the host."""

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        """Logits [B, N, V] as they shall be, lazily."""
        return logits
