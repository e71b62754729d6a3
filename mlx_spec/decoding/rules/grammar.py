"""``GrammarRule``: rows that have a constraint may say only what their grammar allows.

The masks of all such rows and all their guesses are filled in one call on the host, while the
target computes the logits that they are for. A guess that the grammar forbids is refused by the
target's own sample, which cannot be that token; what was guessed behind it is no guess any more.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import groupby

import mlx.core as mx

from mlx_spec.cache.packing import TokenPacking
from mlx_spec.decoding.rules.base import Judged, LogitsRule, RuleContext
from mlx_spec.sequence import Sequence
from mlx_spec.structured.masks import MOST_SECONDS, fill_masks

_ALL = 0xFFFFFFFF  # tokens are allowed
_FORBIDDEN = 0xFF800000  # -inf as the bits of a float32; less the highest bit it is +inf


class GrammarRule(LogitsRule):
    """Masks the logits of rows with a ``guide``; the last of all rules.

    Args:
        seconds: of a step, for what stands behind guesses.
    """

    needs_host = True

    def __init__(self, seconds: float = MOST_SECONDS) -> None:
        self._seconds = seconds
        self._guided: list[bool] = []
        self._words = mx.zeros((0, 0, 0), mx.uint32)

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Rows with a constraint."""
        return any(sequence.guide is not None for sequence in sequences)

    def see(self, sequences: Seq[Sequence], draft: list[list[int]]) -> Judged | None:
        """Fill the masks behind what the rows have emitted and what is guessed of them."""
        self._guided = [sequence.guide is not None for sequence in sequences]
        own = [(row, one) for row, one in enumerate(sequences) if one.guide is not None]
        for _, sequence in own:
            sequence.guide.follow(sequence.tokens)
        guides = [sequence.guide for _, sequence in own]
        masks = fill_masks(guides, [draft[row] for row, _ in own], self._seconds)
        words, width = mx.array(masks.words).view(mx.uint32), 1 + max(map(len, draft))
        # Rows without a constraint may have longer drafts.
        holes = [(0, 0), (0, width - words.shape[1]), (0, 0)]
        self._words = mx.pad(words, holes, constant_values=_ALL)
        counted, tested = ([len(guesses) for guesses in draft] for _ in range(2))
        for place, (row, sequence) in enumerate(own):
            sequence.doomed, sequence.dead_end = sequence.guide.trouble, masks.ends[place]
            counted[row], tested[row] = masks.counted[place], masks.tested[place]
        return Judged(counted, tested, tuple(own[place][0] for place in masks.late))

    def of_tokens(self, packing: TokenPacking) -> GrammarRule:
        """Each token by the mask of its place."""
        own, width = GrammarRule(), self._words.shape[1]
        own._guided = [self._guided[row] for row in packing.rows]
        guided = [row for row, flag in enumerate(self._guided) if flag]
        first = {row: number * width for number, row in enumerate(guided)}
        places = zip(packing.rows, packing.columns, strict=True)
        index = [first[row] + column for row, column in places if row in first]
        own._words = self._words.flatten(0, 1)[mx.array(index, mx.int32)][:, None]
        return own

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        """-inf for what is forbidden; rows without a constraint are handed on as they are."""
        parts, begin, seen = [], 0, 0
        for guided, run in groupby(self._guided):
            rows = len(list(run))
            part = logits[begin : begin + rows]
            if guided:
                part = _masked(part, self._words[seen : seen + rows])
                seen += rows
            parts.append(part)
            begin += rows
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def _masked(logits: mx.array, words: mx.array) -> mx.array:
    """Logits [R, N, V], -inf where the bit of [R, N, W] words of 32 tokens is 0, or there is none.

    A minimum, so that NaN stays.
    """
    vocabulary = logits.shape[-1]
    missing = -(-vocabulary // 32) - words.shape[-1]
    if missing > 0:  # a model padded to more tokens than the tokenizer has
        words = mx.pad(words, [(0, 0), (0, 0), (0, missing)])
    bits = (words[..., None] >> mx.arange(32, dtype=mx.uint32)) & 1
    bits = bits.reshape(*words.shape[:-1], -1)[..., :vocabulary]
    limits = (mx.array(_FORBIDDEN, mx.uint32) - (bits << 31)).view(mx.float32)
    return mx.minimum(logits, limits.astype(logits.dtype))
