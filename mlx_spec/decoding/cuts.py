"""Where a text is cut that is read piece by piece, and how its pieces must be computed.

Nearly every model computes a token alike whatever it is read with. One that has a branch for a
single new token (``ModelRunner.branches``) computes prompts in one way and what it says in another,
so that its K/V, and in the end its tokens, would depend on how a text came into the cache. There a
text is read again (after a preemption) as it came about, and no piece of a prompt is one token::

    p p p p p p p p p p p p p p | p s s s s s s s    p  prompt: its last token is read by the
    |-------|-------|-------|---| |---|---|---|-|       first step, as what is said is
     pieces, as a prompt           as decoded, ``MOST_DECODED`` at once
"""

from __future__ import annotations

from mlx_spec.decoding.chunk_size import ChunkSize
from mlx_spec.model.pace import power_of_two
from mlx_spec.sequence import Sequence

# Tokens that are read again at once as they were decoded: each of them reads all keys before it.
MOST_DECODED = 16


class Cuts:
    """The cuts of all texts that one model reads.

    Args:
        size: says at multiples of how many tokens texts are cut.
        branches: whether what was said is computed in another way than prompts.
    """

    def __init__(self, size: ChunkSize, *, branches: bool) -> None:
        self._size, self._branches = size, branches

    def end(self, sequence: Sequence, seen: int, budget: int) -> int:
        """Where the piece ends that begins at ``seen``; the last known token stays pending."""
        last = self.last(sequence, seen)
        if self.decoded(sequence, seen):
            return min(last, seen + MOST_DECODED)
        piece = min(self._size.piece, power_of_two(budget))
        return min(last, (seen // piece + 1) * piece)

    def last(self, sequence: Sequence, seen: int) -> int:
        """Where what is computed as what stands at ``seen`` ends."""
        return sequence.length - 1 if self.decoded(sequence, seen) else self.read(sequence)

    def decoded(self, sequence: Sequence, seen: int) -> bool:
        """Whether what stands at ``seen`` is computed as decoding does."""
        return self._branches and seen >= len(sequence.prompt) - 1

    def read(self, sequence: Sequence) -> int:
        """Tokens of a text that are computed as prompts are."""
        read = sequence.length - 1
        return min(read, len(sequence.prompt) - 1) if self._branches else read

    def width(self, tokens: int, *, decoded: bool) -> int:
        """How wide a pass over so many tokens a row is; the rest is padding."""
        return 2 if tokens == 1 and self._branches and not decoded else tokens
