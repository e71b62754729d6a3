"""XTC ("exclude top choices"): the most probable tokens taken away, now and then.

A coin of each (seed, position) decides: a stream of its own of the counter hash, so that it falls
alike for target and draft and in any batch. Among what top-p and min-p keep, tokens with more than
a share of the mass are top choices; all go but the least probable of them, and special tokens::

    ranking     A 40%   B 25%   C 15%   D 8%  ..      threshold 10%
    excluded    A       B                             C is the least probable top choice
    top-k of 2                  C       D             counts what is left
"""

from __future__ import annotations

import mlx.core as mx

from metal_kernels.noise import Keys, stream_word
from metal_kernels.sample_cuts import LOW_BITS, behind, mantissa_of, mass_of, ranked_cut, total_of
from metal_kernels.sample_extras import Exclusion
from metal_kernels.sample_rows import LARGEST_KEY

COIN_STREAM = 1
_MOST_MASS = 2**28


def excluded(ranks: mx.array, drop: mx.array, exclusion: Exclusion, keys: Keys) -> mx.array:
    """[R, V] uint8: 1 for tokens that are dropped, these too.

    Args:
        ranks: [R, V] int32 keys of tokens (``ranks_of``); V a multiple of 16.
        drop: [R, V] uint8, what top-p and min-p drop.
        exclusion: options of the R rows.
        keys: of the noise, [R, 1].
    """
    high = ranks >> LOW_BITS
    masses = mass_of(high, mantissa_of(high)) * (1 - drop).astype(mx.uint32)
    limit = mx.minimum(_part(total_of(masses)[:, None], exclusion.share), _MOST_MASS)
    choices = masses > limit.astype(mx.uint32)
    least = mx.where(choices, ranks, -1).max(axis=1, keepdims=True)
    falls = stream_word(keys, COIN_STREAM).astype(mx.int64) < exclusion.chance
    least = mx.where(falls, least, -1)
    tokens = mx.arange(ranks.shape[1], dtype=mx.int32)
    top = ranks < least
    for special in range(exclusion.special.shape[1]):
        top = top & (tokens != exclusion.special[:, special, None])
    drop = drop | top.view(mx.uint8)
    if not exclusion.by_count:
        return drop
    left = mx.where(drop.view(mx.bool_), LARGEST_KEY, ranks)
    return drop | behind(left, ranked_cut(left, exclusion.top_k))


def _part(total: mx.array, share: mx.array) -> mx.array:
    """``share * total`` rounded down, in int64; ``total`` in two parts, or 64 bits overflow."""
    above, below = total >> 23, total & (2**23 - 1)
    return ((above * share) >> 8) + ((below * share) >> 31)
