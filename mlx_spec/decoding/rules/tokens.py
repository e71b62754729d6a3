"""Some tokens of each row and position, as places in its logits."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import mlx.core as mx


def ids_of(rows: Seq[Seq[int]]) -> mx.array:
    """[b, E] int32: the ids of each row, padded with -1 to the longest."""
    width = max(map(len, rows))
    return mx.array([[*row, *[-1] * (width - len(row))] for row in rows], mx.int32)


def places_of(
    tokens: mx.array, logits: mx.array
) -> tuple[tuple[mx.array, mx.array, mx.array], mx.array]:
    """Where these tokens' logits are.

    Args:
        tokens: [b, N or 1, E] ids; -1, and those that the model lacks, are none.
        logits: [b, N, V].

    Returns:
        Three arrays to index ``logits`` with, of which the last is [b, N, E] and within bounds; and
        [b, N or 1, E], which of them are tokens at all.
    """
    rows, places, vocabulary = logits.shape
    known = (tokens >= 0) & (tokens < vocabulary)
    within = mx.broadcast_to(mx.where(known, tokens, 0), (rows, places, tokens.shape[-1]))
    row = mx.arange(rows, dtype=mx.int32)[:, None, None]
    return (row, mx.arange(places, dtype=mx.int32)[None, :, None], within), known
