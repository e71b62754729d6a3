"""``leads``: how far chosen tokens lead those that could have been chosen in their place.

A drafter's guess stands where the target chooses the same token under the same noise. How probable
the drafter thought the token says little of that: a token of 0.1 that leads by its noise is chosen
by the target, too, and one of 0.6 whose rival has nearly as high a score may not be. So what counts
is the score that won, logit over temperature and noise, beside the scores of others: as a softmax
among those of the highest logits. Of a greedy row it is its token's probability.

Only some are looked at, since all of a vocabulary's exponentials cost a CPU more than a small
draft's pass: tokens are seen as columns, and all of the 16 with the highest logits are taken::

    token   0 |  1 |  2 | ..       rivals: the columns of the highest logits, ...
            C | C+1| C+2| ..       ... some hundred tokens
"""

from __future__ import annotations

import mlx.core as mx

from metal_kernels.noise import Keys, first_word, gumbel, row_keys, second_word, token_words
from metal_kernels.sample_rows import SampleRows

COLUMNS, HEIGHT = 16, 32
_FORBIDDEN = -1e30  # no infinity, of which two differ by no number


def leads(logits: mx.array, positions: mx.array, rows: SampleRows, tokens: mx.array) -> mx.array:
    """[B, N] float32 from 0 to 1: 1 where a token has no rival.

    Args:
        logits: [B, N, V].
        positions: [B, N], of the tokens that were chosen.
        rows: seeds and options of the B rows; filters are not looked at.
        tokens: [B, N] int32, those that were chosen.
    """
    rivals = _rivals(logits)
    values = mx.take_along_axis(logits, rivals, axis=-1).astype(mx.float32)
    own = mx.take_along_axis(logits, tokens[..., None], axis=-1).astype(mx.float32)
    below = mx.concatenate([own, values], axis=-1)
    below = mx.maximum(below - below.max(axis=-1, keepdims=True), _FORBIDDEN)
    if rows.groups:
        both = mx.concatenate([tokens[..., None], rivals], axis=-1)
        below = _raced(below, both, positions, rows, logits.shape[-1])
    score, others = below[..., :1], below[..., 1:]
    # It is among its rivals, too, where it is one of the likeliest.
    others = mx.where(rivals == tokens[..., None], -mx.inf, others)
    return 1.0 / (1.0 + mx.exp(others - score).sum(axis=-1))


def _rivals(logits: mx.array) -> mx.array:
    """[B, N, L] int32: tokens among which those of the highest logits are."""
    vocabulary = logits.shape[-1]
    columns = vocabulary // HEIGHT
    if columns <= COLUMNS:
        return mx.broadcast_to(mx.arange(vocabulary, dtype=mx.int32), logits.shape)
    # The last few tokens of a vocabulary are none, but for a number that the height divides.
    whole = logits[..., : columns * HEIGHT].reshape(*logits.shape[:-1], HEIGHT, columns)
    best = mx.argpartition(-whole.max(axis=-2), COLUMNS - 1, axis=-1)[..., :COLUMNS]
    lines = columns * mx.arange(HEIGHT, dtype=mx.int32)[:, None]
    return (best.astype(mx.int32)[..., None, :] + lines).reshape(*logits.shape[:-1], -1)


def _raced(
    below: mx.array, tokens: mx.array, positions: mx.array, rows: SampleRows, vocabulary: int
) -> mx.array:
    """Scores of tokens [B, N, L] that lie so far below the top: as each row races them."""
    words = token_words(vocabulary)[tokens]
    scores = [below[mx.array(rows.greedy, mx.int32)]] if rows.greedy else []
    order = list(rows.greedy)
    for group in rows.groups:
        keys = row_keys(group.seeds, positions[group.index])
        keys = Keys(keys.one[..., None], keys.two[..., None])
        first = first_word(words[group.index], keys)
        noise = gumbel(first, second_word(first, keys))
        rate = group.inverse_temperature[:, None, None]
        scores.append(below[group.index] * rate + noise)
        order += group.rows
    if len(scores) == 1:
        return scores[0]
    places = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(scores)[mx.array(places, mx.int32)]
