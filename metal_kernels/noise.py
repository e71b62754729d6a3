"""Gumbel noise that is a pure function of (seed, position, token).

A counter hash: nothing is drawn in sequence, so a token's noise is the same whatever the
vocabulary is padded to, whichever row or step asks, and on every device. Seeds have 64 bits. Only
integer operations, single float32 additions and multiplications and a table are used, which every
machine rounds alike; no library's ``log`` takes part.

A token's uniform number has two words of 32 bits. The first alone ranks tokens roughly; the second
refines it where it matters, in the tail from which winners come: noise reaches up to 45, and is
right to a float's precision there.

What is done once for a seed (on the host), once for a token (kept) and once for a position is
mixed well; what is left for each token of each row is two multiplications with a xorshift between,
the second by a number of the row's own::

    seed ---- two words --+
    position -------------+-- key one, key two (odd)
    token --- word ------ (word ^ one) * C -- xorshift -- * two -- first word

Constants are those of Wellons' ``lowbias32`` (2018, public domain), found by search for the least
bias.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import mlx.core as mx

from metal_kernels.noise_table import SEGMENT_BITS, gumbel_table

LN2 = 0.6931471805599453

_ONE, _TWO = 0x7FEB352D, 0x846CA68B


class Keys(NamedTuple):
    """Two words that stand for (seed, position): uint32, of one shape; the second is odd."""

    one: mx.array
    two: mx.array


def seed_words(seed: int) -> tuple[int, int]:
    """Two words of 32 bits for a seed below 2**64; different ones for different seeds."""
    # A bijection of 64 bits: the finalizer of MurmurHash3 (Appleby, public domain).
    x = (seed + 0x9E3779B97F4A7C15) % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = ((x ^ (x >> 33)) * factor) % 2**64
    x ^= x >> 33
    return x % 2**32, x >> 32


def row_keys(seeds: mx.array, positions: mx.array) -> Keys:
    """Mix the words of seeds with positions into keys.

    Args:
        seeds: [B, 2] uint32, as :func:`seed_words` gives them.
        positions: [B, N] integers.

    Returns:
        Keys of shape [B, N].
    """
    second = seeds[:, 1:]
    x = (positions.astype(mx.uint32) ^ seeds[:, :1]) * _word(_ONE)
    x = (x ^ (x >> 16)) * _word(_TWO)
    x = x ^ (x >> 15)
    return Keys(x + second, ((x * _word(_ONE)) ^ second) | 1)


def mix(x: mx.array) -> mx.array:
    """A bijection of 32 bits in which every bit depends on every bit."""
    x = (x ^ (x >> 16)) * _word(_ONE)
    x = (x ^ (x >> 15)) * _word(_TWO)
    return x ^ (x >> 16)


@functools.lru_cache(maxsize=8)
def token_words(vocabulary: int) -> mx.array:
    """[V] uint32: a word for each token, the same for all rows; 4 bytes a token, kept."""
    words = mix(mx.arange(vocabulary, dtype=mx.uint32) + _word(0x27D4EB2F))
    mx.eval(words)
    return words


def first_word(words: mx.array, keys: Keys) -> mx.array:
    """The high 32 bits of the uniform numbers of tokens (their words), keys broadcast to them.

    Within a row no two tokens have the same.
    """
    x = (words ^ keys.one) * _word(_ONE)
    return (x ^ (x >> 15)) * keys.two


def second_word(first: mx.array, keys: Keys) -> mx.array:
    """The low 32 bits."""
    x = first * _word(_TWO) + keys.one
    return (x ^ (x >> 15)) * _word(_ONE)


def stream_word(keys: Keys, stream: int) -> mx.array:
    """32 uniform bits of each (seed, position), beside tokens' noise; others in each stream."""
    # 2**32 over the golden ratio: streams' numbers far apart.
    return mix(mix(keys.one ^ _word(stream * 0x9E3779B9 % 2**32)) + keys.two)


def gumbel(first: mx.array, second: mx.array) -> mx.array:
    """``-log(-log(1 - w))`` in float32 for w = (first * 2**32 + second + 1/2) / 2**64.

    Both ends of the unit interval keep all their bits: first and second word, read as a signed
    number, are the distance to the nearer one, and a float's leading bits (sign, exponent, six of
    the mantissa) the row of a table of parabolas.
    """
    distance = first.view(mx.int32).astype(mx.float32)
    bits = (distance + (second.astype(mx.float32) + 0.5) * 2.0**-32).view(mx.uint32)
    parabola = gumbel_table()[bits >> SEGMENT_BITS]
    inside = (bits & (2**SEGMENT_BITS - 1)).astype(mx.float32)
    noise: mx.array = (parabola[..., 2] * inside + parabola[..., 1]) * inside + parabola[..., 0]
    return noise


def gumbel_noise(seeds: mx.array, positions: mx.array, vocabulary: int) -> mx.array:
    """[B, N, V] float32: all the noise there is; sampling itself never makes it.

    Args:
        seeds: [B, 2] uint32, as :func:`seed_words` gives them.
        positions: [B, N] integers.
        vocabulary: V.
    """
    keys = row_keys(seeds, positions)
    keys = Keys(keys.one[..., None], keys.two[..., None])
    first = first_word(token_words(vocabulary), keys)
    return gumbel(first, second_word(first, keys))


def _word(value: int) -> mx.array:
    return mx.array(value, mx.uint32)
