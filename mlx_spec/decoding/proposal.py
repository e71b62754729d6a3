"""What a step passes from phase to phase: guesses, and what the target says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.decoding.drafters.base import FilledGuesses
from mlx_spec.decoding.rules import Judged
from mlx_spec.decoding.watching import Extra


@dataclass(frozen=True)
class Proposal:
    """A draft to be verified.

    Attributes:
        tokens: [B, K] int32 guesses.
        lengths: how many of them may count, for each row; K is the most.
        counted: [B] int32, how many do: fewer where the drafter had no more to say.
        sources: who guessed for each row, by name; "" where nobody did.
        probabilities: [B, K, V] that they were drawn from, where the drafter tells.
        tested: [B] int32, how many the target judges; None for those that count.
        passes: guesses one after the other that each drafter computed, by name; None: as many as
            the longest of its rows has.
        packing: which tokens of [pending, draft] the target's pass is given; None for all.
        late: rows that say nothing in this step, whatever the target says.
        said: [B, K] float32, how sure the drafter is of each, where ``counted`` was chosen on the
            device by that: then ``lengths`` are what rows might have been given.
    """

    tokens: mx.array
    lengths: list[int]
    counted: mx.array
    sources: list[str]
    probabilities: mx.array | None = None
    tested: mx.array | None = None
    passes: Mapping[str, int] | None = None
    packing: TokenPacking | None = None
    late: tuple[int, ...] = ()
    said: mx.array | None = None

    @property
    def counts(self) -> mx.array | None:
        """[B] int32 tokens that the target reads of each row; None where all read as many."""
        packing = self.packing
        if packing is not None and packing.told is not None:
            return self.counted + 1
        ragged = min(self.lengths) < self.tokens.shape[1]
        return mx.array(self.lengths, mx.int32) + 1 if ragged else None

    @property
    def computed(self) -> int:
        """Tokens that the target's pass takes."""
        own = self.packing
        return self.tokens.shape[0] * (self.tokens.shape[1] + 1) if own is None else own.size

    def alike(self, filled: FilledGuesses) -> Proposal:
        """As many guesses as were to be given to rows by how sure they are, each row the same."""
        most = max(1, -(-filled.guesses // len(self.lengths)))
        lengths = [min(length, most) for length in self.lengths]
        tokens, counted = self.tokens[:, : max(lengths)], mx.array(lengths, mx.int32)
        return replace(self, tokens=tokens, lengths=lengths, counted=counted)

    def judged(self, by: Judged | None) -> Proposal:
        """The same, less the guesses that a rule knows to be none, and what it has no time for."""
        if by is None:
            return self
        of_rows = zip(self.lengths, by.counted, by.tested, strict=True)
        if not by.late and all(n <= counted and n <= tested for n, counted, tested in of_rows):
            return self
        before = self.counted if self.tested is None else self.tested
        return replace(
            self,
            counted=mx.minimum(self.counted, mx.array(by.counted, mx.int32)),
            tested=mx.minimum(before, mx.array(by.tested, mx.int32)),
            late=(*self.late, *by.late),
        )


@dataclass(frozen=True)
class Choice:
    """What the target says.

    Attributes:
        samples: [B, K + 1] int32, its own tokens at the draft's positions and the one after.
        accepted: [B] int32 leading draft tokens that agree, or ``NO_NUMBERS``.
        extras: what else is to be read of it.
    """

    samples: mx.array
    accepted: mx.array
    extras: list[Extra] = field(default_factory=list)
