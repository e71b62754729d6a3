"""What a drafter is: the seam at which any source of guesses plugs in.

The decoder holds no knowledge of any drafter; switching drafts off is ``NoDraft``, so the step
has no ``if draft``. A drafter keeps whatever per-row state it needs in row order and hears of
every join and leave. It may propose anything: the output never depends on it, only the speed.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class DraftContext:
    """What is known when a draft is asked for.

    Attributes:
        tokens: [B, C] int32, known tokens of each row from position 0; past ``lengths`` garbage.
        lengths: [B] int32, known tokens; may still be computing on the device.
        shortest, longest: host bounds on ``lengths`` over all rows.
        sampling: the rows' options.
        vocabulary: size of the target's; it has no embedding for tokens past it.
    """

    tokens: mx.array
    lengths: mx.array
    shortest: int
    longest: int
    sampling: SamplingBatch
    vocabulary: int


class Drafter(Protocol):
    """A source of draft tokens for a batch of rows."""

    @property
    def needs_host(self) -> bool:
        """Whether the last step must have been read before it is asked (``drivers.in_turn``)."""
        ...

    @property
    def prefix_bytes(self) -> int:
        """Bytes that it keeps of repeated beginnings."""
        ...

    @property
    def max_draft_tokens(self) -> int | None:
        """Most tokens it can propose at once; None for any number."""
        ...

    @property
    def runners(self) -> tuple[ModelRunner, ...]:
        """The models that it runs, none or some."""
        ...

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Rows join at the end.

        Args:
            sequences: the newcomers; what they are known to hold now is what counts.
            longest: positions that any row may reach before the next proposal.
        """
        ...

    def keep(self, order: Seq[int]) -> None:
        """Rows change: new row i was row ``order[i]``; rows not named have left."""
        ...

    def catch_up(self, context: DraftContext) -> int:
        """Read some of what it has not seen yet, lazily; return the number of tokens.

        Asked before a step that drafts. It bounds what one step adds for rows whose texts are
        long, so that the other rows' streams do not freeze meanwhile.
        """
        ...

    def covers(self) -> list[bool]:
        """Whether it can draft for each row now; the others' proposals are worthless."""
        ...

    def propose(self, context: DraftContext, count: int) -> mx.array:
        """[B, count] int32 guesses for positions ``lengths ..``, lazily; count may be 0."""
        ...

    def snapshot(self) -> Any:
        """The present state by reference, for :meth:`restore`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Forget proposals made since ``snapshot``: their step was never launched."""
        ...
