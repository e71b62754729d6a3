"""Log-probabilities of tokens and of their likeliest rivals, of the logits that chose them.

Of the distribution after all rules, before temperature and filters, as mlx-lm's are; in float32.
Only the rows that ask are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

from metal_kernels.log_sum import log_sum
from mlx_spec.decoding.outputs import StepGains
from mlx_spec.decoding.watching import Chosen, Watcher
from mlx_spec.results import TokenLogprob
from mlx_spec.sequence import Sequence

_HEIGHT = 32  # of the columns in which the likeliest tokens are sought


class LogprobsWatcher(Watcher):
    """Gives rows the log-probabilities of their tokens, for as many as they gained."""

    def concerns(self, sequences: Seq[Sequence]) -> bool:
        """Whether one asks for them."""
        return any(sequence.sampling.wants_logprobs for sequence in sequences)

    def watch(self, chosen: Chosen) -> list[mx.array]:
        """Arrays of the rows that ask, in row order."""
        rows = [row for row, one in enumerate(chosen.sequences) if one.sampling.wants_logprobs]
        most = max(chosen.sequences[row].sampling.top_logprobs for row in rows)
        if chosen.packing is not None and chosen.packed is not None:
            tokens, index = chosen.packing.of_rows(rows)
            said = chosen.packing.packed(chosen.samples)[tokens]
            return [scores[index] for scores in score(chosen.packed[tokens], said, most)]
        if len(rows) == len(chosen.sequences):
            return score(chosen.logits, chosen.samples, most)
        own = mx.array(rows, mx.int32)
        return score(chosen.logits[own], chosen.samples[own], most)

    def take(self, gains: StepGains, values: list[Any]) -> None:
        """Those of tokens past a row's end are nobody's."""
        asking = (
            output
            for sequence, output in zip(gains.rows, gains.outputs, strict=True)
            if sequence.sampling.wants_logprobs
        )
        for place, output in enumerate(asking):
            if output is not None:
                row = [value[place] for value in values]
                output.sequence.logprobs += read_scores(output.sequence, output.tokens, row)


def score(logits: mx.array, tokens: mx.array, most: int) -> list[mx.array]:
    """Log-probabilities of tokens, and the ``most`` likeliest ones.

    Args:
        logits: [..., V].
        tokens: [...] int32, those in question.
        most: how many others; 0 for none.

    Returns:
        [...] float32 log-probabilities, and where others are wanted [..., most] int32 tokens and
        [..., most] float32 log-probabilities, in no order.
    """
    wide = logits.astype(mx.float32)
    total = log_sum(wide)
    scores = [mx.take_along_axis(wide, tokens[..., None], axis=-1)[..., 0] - total[..., 0]]
    if most:
        best = likeliest(wide, min(most, wide.shape[-1]))
        scores += [best.astype(mx.int32), mx.take_along_axis(wide, best, axis=-1) - total]
    return scores


def likeliest(logits: mx.array, most: int) -> mx.array:
    """[..., most] places of the largest of [..., V], in no order.

    Each of them is in a column whose largest is among the ``most`` largest of columns, so only
    those columns are partitioned: over the whole vocabulary that takes ten times as long on a CPU.
    """
    vocabulary = logits.shape[-1]
    columns = vocabulary // _HEIGHT
    if columns <= most:
        return _partition(logits, most)
    lines = logits[..., : columns * _HEIGHT].reshape(*logits.shape[:-1], _HEIGHT, columns)
    best = _partition(lines.max(axis=-2), most)[..., None, :]
    steps = columns * mx.arange(_HEIGHT, dtype=best.dtype)[:, None]
    places = (best + steps).flatten(-2)
    if rest := vocabulary - columns * _HEIGHT:
        last = mx.arange(vocabulary - rest, vocabulary, dtype=best.dtype)
        last = mx.broadcast_to(last, (*places.shape[:-1], rest))
        places = mx.concatenate([places, last], axis=-1)
    own = _partition(mx.take_along_axis(logits, places, axis=-1), most)
    return mx.take_along_axis(places, own, axis=-1)


def _partition(values: mx.array, most: int) -> mx.array:
    size = values.shape[-1]
    if most == size:
        return mx.broadcast_to(mx.arange(size, dtype=mx.uint32), values.shape)
    return mx.argpartition(values, size - most, axis=-1)[..., size - most :]


def read_scores(sequence: Sequence, tokens: Iterable[int], values: Seq[Any]) -> list[TokenLogprob]:
    """Records of tokens, from what ``score`` gave for them and perhaps for more after them.

    Of the others the likeliest comes first, the lower id first of equals.

    Args:
        sequence: whose they are, which says how many others it wants.
        tokens: those in question.
        values: numpy arrays [N], and [N, k] of others.
    """
    top, spell = sequence.sampling.top_logprobs, sequence.spell or _silent
    if top and len(values) > 1:
        ids, logprobs = values[1].tolist(), values[2].tolist()
        pairs = [
            sorted(zip(*row, strict=True), key=_rank)[:top]
            for row in zip(ids, logprobs, strict=True)
        ]
    else:
        pairs = [[]] * len(values[0])
    return [
        TokenLogprob(
            token,
            logprob,
            spell(token),
            tuple(TokenLogprob(*pair, spell(pair[0])) for pair in others),
        )
        for token, logprob, others in zip(tokens, values[0].tolist(), pairs, strict=False)
    ]


def _silent(token: int) -> str:
    return ""


def _rank(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]
