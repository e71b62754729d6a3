"""``PromptScorer``: log-probabilities of prompts, of the passes that read them anyway.

The logits of a pass over tokens ``begin .. end - 1`` tell how likely ``begin + 1 .. end`` were.
They are reduced in that pass's own graph, so that no more than one pass's logits are ever alive,
and read by the host when the pass is done, which it waits for in any case. The first token has
nothing before it; the last one is scored by the prompt's last piece, and read by the first step.

What the prefix cache has was read without logits: a row that asks reads its whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_spec.decoding.logprobs import read_scores, score
from mlx_spec.decoding.pass_listeners import PassListener, PromptPass
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class _ScoredPiece:
    """What a pass says of a row's next tokens.

    Attributes:
        sequence: whose.
        begin: where the pass began for it.
        tokens: those that it scores, at ``begin + 1 ..``.
        arrays: as ``logprobs.score`` gives them, lazy.
    """

    sequence: Sequence
    begin: int
    tokens: list[int]
    arrays: list[mx.array]

    def take(self) -> None:
        """Computed: the row's own from here on. One that began anew meanwhile has it already."""
        known = self.sequence.prompt_logprobs
        if len(known) == self.begin:
            values = [np.asarray(array) for array in self.arrays]
            known += read_scores(self.sequence, self.tokens, values)


class PromptScorer(PassListener):
    """Scores the prompts that ask for it, as they are read."""

    def __init__(self) -> None:
        self._pieces: list[_ScoredPiece] = []  # described, perhaps not computed

    def wants(self, sequence: Sequence) -> bool:
        """Whether a row's prompt is to be read with logits, from its first token on."""
        missing = len(sequence.prompt) - 1 - len(sequence.prompt_logprobs)
        return sequence.sampling.prompt_logprobs and missing > 0

    def begin(self, sequence: Sequence) -> None:
        """A row is read from its first token on."""
        if self.wants(sequence):
            sequence.prompt_logprobs.clear()

    def heard(self, read: PromptPass) -> None:
        """Of the rows that ask, what its logits say of the tokens behind those that it reads."""
        for place, (sequence, end) in enumerate(read.ends.items()):
            if self.wants(sequence):
                tokens = sequence.prompt[read.begin + 1 : end + 1]
                own = read.logits[place, : len(tokens)]
                arrays = score(own, mx.array(tokens, mx.int32), sequence.sampling.top_logprobs)
                self._pieces.append(_ScoredPiece(sequence, read.begin, tokens, arrays))

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Rows leave: what was described for them is nobody's."""
        self._pieces = [piece for piece in self._pieces if piece.sequence not in sequences]

    @property
    def described(self) -> list[mx.array]:
        """All that is to be computed."""
        return [array for piece in self._pieces for array in piece.arrays]

    def launched(self) -> Callable[[], None]:
        pieces, self._pieces = self._pieces, []

        def done() -> None:
            for piece in pieces:
                piece.take()

        return done
