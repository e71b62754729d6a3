"""Gumbel noise that is a pure function of (seed, position, token).

A counter hash: nothing is drawn in sequence, so a token's noise is the same whatever the
vocabulary is padded to, whichever row or step asks, and on every device. Seeds have 64 bits. Only
integer operations and single float32 additions and multiplications are used, which every machine
rounds alike; no library's ``log`` takes part.

A token's uniform number has two words of 32 bits. The first alone ranks tokens roughly; the second
refines it where it matters, in the tail from which winners come: noise reaches up to 45, and is
right to a float's precision there.

The mixing is multiply and xorshift, with the constants of Wellons' ``lowbias32`` (2018, public
domain), found by search for the least bias.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import mlx.core as mx

LN2 = 0.6931471805599453

# -log(1 - d) / d for |d| <= 1/2, ascending, within 8e-8. The kernel has the same numbers.
LOG1M = (
    1.0,
    0.499999881,
    0.333333224,
    0.250013471,
    0.200012654,
    0.16624403,
    0.142460167,
    0.130585641,
    0.116356127,
    0.0652111396,
    0.058257807,
    0.179714784,
    0.167286038,
)


class Keys(NamedTuple):
    """Two words that stand for (seed, position): uint32, of one shape."""

    one: mx.array
    two: mx.array


def row_keys(seeds: mx.array, positions: mx.array) -> Keys:
    """Mix seed and position into keys; for one position, different seeds give different keys.

    Args:
        seeds: [B, 2] uint32, low and high word.
        positions: [B, N] integers.

    Returns:
        Keys of shape [B, N].
    """
    one, two = _stir(seeds[:, :1], seeds[:, 1:], 0x9E3779B9)
    one = one ^ mix(positions.astype(mx.uint32) + _word(0x85EBCA6B))
    return Keys(*_stir(one, two, 0xC2B2AE35))


def _stir(one: mx.array, two: mx.array, salt: int) -> tuple[mx.array, mx.array]:
    """A bijection of 64 bits: Feistel rounds, so that nothing of two inputs is lost."""
    for number in range(2):
        one = one ^ mix(two + _word(salt + 2 * number))
        two = two ^ mix(one + _word(salt + 2 * number + 1))
    return one, two


def mix(x: mx.array) -> mx.array:
    """A bijection of 32 bits in which every bit depends on every bit."""
    x = (x ^ (x >> 16)) * _word(0x7FEB352D)
    x = (x ^ (x >> 15)) * _word(0x846CA68B)
    return x ^ (x >> 16)


@functools.lru_cache(maxsize=8)
def token_words(vocabulary: int) -> mx.array:
    """[V] uint32: a word for each token, the same for all rows; 4 bytes a token, kept."""
    words = mix(mx.arange(vocabulary, dtype=mx.uint32) + _word(0x27D4EB2F))
    mx.eval(words)
    return words


def first_word(words: mx.array, keys: Keys) -> mx.array:
    """The high 32 bits of the uniform numbers of tokens (their words), keys broadcast to them."""
    x = words ^ keys.one
    x = ((x ^ (x >> 16)) * _word(0x7FEB352D)) ^ keys.two
    x = (x ^ (x >> 15)) * _word(0x846CA68B)
    return x ^ (x >> 16)


def second_word(words: mx.array, keys: Keys) -> mx.array:
    """The low 32 bits."""
    return mix(mix(words + keys.two) ^ keys.one)


def gumbel(first: mx.array, second: mx.array) -> mx.array:
    """``-log(-log(1 - w))`` in float32 for w = (first * 2**32 + second + 1/2) / 2**64.

    Small w is the side of the winners: there its bits are all kept, down to 2**-65.
    """
    upper = first >= _word(2**31)  # past one half: count from the other end, u = 1 - w
    high, low = mx.where(upper, ~first, first), mx.where(upper, ~second, second)
    part = high.astype(mx.float32) * 2.0**-32 + (low.astype(mx.float32) + 0.5) * 2.0**-64
    # u = m * 2**-k with m in [1/2, 1): -log u = k log 2 - log m.
    exponent, mantissa = _split(part)
    halvings = mx.where(upper, -1.0 - exponent, 0.0)
    rest = mx.where(upper, 1.0 - mantissa * 0.5, part)
    exponential = halvings * LN2 + rest * _log1m(rest)
    exponent, mantissa = _split(exponential)
    high_half = mantissa > 1.5
    mantissa = mx.where(high_half, mantissa * 0.5, mantissa)
    exponent = mx.where(high_half, exponent + 1.0, exponent)
    rest = 1.0 - mantissa
    return rest * _log1m(rest) - exponent * LN2


def gumbel_noise(seeds: mx.array, positions: mx.array, vocabulary: int) -> mx.array:
    """[B, N, V] float32: all the noise there is; sampling itself never makes it.

    Args:
        seeds: [B, 2] uint32, low and high word.
        positions: [B, N] integers.
        vocabulary: V.
    """
    keys = row_keys(seeds, positions)
    keys = Keys(keys.one[..., None], keys.two[..., None])
    words = token_words(vocabulary)
    return gumbel(first_word(words, keys), second_word(words, keys))


def _split(x: mx.array) -> tuple[mx.array, mx.array]:
    """Exponent and mantissa in [1, 2) of positive floats that are not subnormal, as floats."""
    bits = x.view(mx.int32)
    exponent = (bits >> 23) - 127
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(mx.float32)
    return exponent.astype(mx.float32), mantissa


def _log1m(d: mx.array) -> mx.array:
    """``-log(1 - d) / d`` by Horner's rule."""
    total = mx.full(d.shape, LOG1M[-1])
    for coefficient in LOG1M[-2::-1]:
        total = total * d + coefficient
    return total


def _word(value: int) -> mx.array:
    return mx.array(value % 2**32, mx.uint32)
