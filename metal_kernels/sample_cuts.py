"""Where top-p, top-k and min-p cut a row's ranking, found without sorting it.

Tokens are ranked by probability, equal ones by id. What the filters keep is a beginning of that
ranking, so it is told by the last token kept: a key (its distance to the most probable token, in
2**-19 octaves, 24 bits) and an id. Keys are found by bisection; each step counts over the whole
row what lies above.

All sums are of integers: exact, in any order, on any device. A token's mass is 2**28 times its
probability over the largest, rounded down, by the upper 16 bits of its key; the most probable
token has key 0 and nobody else. So logits within 1.4e-6 of each other count as equal (a float32
of 8 or more resolves no more), masses are right to 2.4e-4 of themselves, and tokens below 4e-9 of
the largest have none.

Temperature plays no part: filters look at the model's own probabilities.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import mlx.core as mx

from metal_kernels.sample_rows import KEY_BITS, LARGEST_KEY, Options

OCTAVES_PER_NAT = math.log2(math.e)
ALMOST_ONE = 1 - 2**-24  # added before truncation: only what is 0 stays 0

LOW_BITS = 8  # of a key, which mass does not look at
_HIGH_BITS = 16
_FRACTION = 2**11 - 1  # of the upper 16 bits, 11 are less than an octave
_MASS_BITS = 28

# 2**-f for f in [0, 1], within 4e-6; scaled below for f in 2**-11 and to stay under 2**28.
EXP2 = (0.99999804, -0.69304893, 0.2394306, -0.05321312, 0.00683515)
_SCALED = tuple(c * (1 - 2**-20) * 2.0 ** (_MASS_BITS - 11 * i) for i, c in enumerate(EXP2))

# Rows are seen as columns of 16 tokens, which MLX's CPU build reduces faster than rows; also,
# 16 times less than 2**28 is the most that 32 bits hold.
_ALL = 2**31 - 1
COLUMN = 16


class Cut(NamedTuple):
    """The last token that a row keeps: [R, 1] uint32 key, [R, 1] int32 id (of that key)."""

    key: mx.array
    token: mx.array


def ranks_of(values: mx.array, top: mx.array) -> mx.array:
    """[R, V] uint32 keys: how far each of ``values`` lies below ``top`` [R, 1]."""
    scaled = (top - values) * (OCTAVES_PER_NAT * 2**KEY_BITS) + ALMOST_ONE
    return mx.minimum(scaled, float(LARGEST_KEY)).astype(mx.uint32)


def is_dropped(keys: mx.array, tokens: mx.array, cut: Cut) -> mx.array:
    """Which tokens lie behind the cut."""
    return (keys > cut.key) | ((keys == cut.key) & (tokens > cut.token))


def cuts(keys: mx.array, options: Options) -> Cut:
    """The cut of each row.

    Args:
        keys: [R, V] as :func:`ranks_of` gives them, V a multiple of 16.
        options: of the R rows.
    """
    lowest = options.lowest
    everything = mx.full(lowest.shape, keys.shape[1], mx.int32)
    if not options.by_rank:
        return Cut(lowest, everything)
    high = (keys >> LOW_BITS).astype(mx.uint16)
    if options.by_mass:
        first, before, count = _first_bin_by_mass(high, options.top_p, options.top_k)
    else:
        (first, before), count = _first_bin(high, options.top_k), options.top_k
    ranked = _nth(keys, first, before, count)
    stricter = lowest < ranked.key
    return Cut(mx.where(stricter, lowest, ranked.key), mx.where(stricter, everything, ranked.token))


def mass_of(high: mx.array) -> mx.array:
    """uint32 mass of tokens whose keys have these upper 16 bits."""
    octaves = (high >> 11).astype(mx.int32)
    fraction = (high & _FRACTION).astype(mx.float32)
    total = fraction * _SCALED[-1] + _SCALED[-2]
    for coefficient in _SCALED[-3::-1]:
        total = total * fraction + coefficient
    return (total.view(mx.int32) - (octaves << 23)).view(mx.float32).astype(mx.uint32)


@functools.cache
def _mass_table() -> mx.array:
    """[2**16] uint32: the mass of each upper half of a key."""
    table = mass_of(mx.arange(2**_HIGH_BITS, dtype=mx.uint32))
    mx.eval(table)
    return table


def _total(masses: mx.array) -> mx.array:
    """[R, 1] int64."""
    columns = masses.reshape(masses.shape[0], COLUMN, -1).sum(axis=1)
    return columns.astype(mx.int64).sum(axis=1, keepdims=True)


def _share(total: mx.array, top_p: mx.array) -> mx.array:
    """``top_p * total`` in int64, at least 1; ``total`` in two parts, or 64 bits overflow."""
    above, below = total >> 23, total & (2**23 - 1)
    return mx.maximum(((above * top_p) >> 8) + ((below * top_p) >> 31), 1)


def _count(keys: mx.array, last: mx.array) -> mx.array:
    """[R, 1] int32: tokens of key ``last`` or before."""
    return (keys <= last).sum(axis=1, keepdims=True)


def _first_bin(high: mx.array, count: mx.array) -> tuple[mx.array, mx.array]:
    """The first upper half of a key up to which there are ``count`` tokens; those before it."""
    first, before = mx.zeros(count.shape, mx.int32), mx.zeros(count.shape, mx.int32)
    for bit in reversed(range(_HIGH_BITS)):
        last = first + (2**bit - 1)
        upto = _count(high, last.astype(mx.uint16))
        enough = upto >= count
        first, before = mx.where(enough, first, last + 1), mx.where(enough, before, upto)
    return mx.minimum(first, 2**_HIGH_BITS - 1), before


def _first_bin_by_mass(
    high: mx.array, top_p: mx.array, top_k: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The bin in which mass reaches its share or the count ``top_k``; tokens before; tokens kept.

    All [R, 1] int32.
    """
    table, masses = _mass_table(), mass_of(high)
    share = _share(_total(masses), top_p)
    first = mx.zeros(top_k.shape, mx.int32)
    count, mass = mx.zeros(top_k.shape, mx.int32), mx.zeros(top_k.shape, mx.int64)  # before it
    for bit in reversed(range(_HIGH_BITS)):
        last = first + (2**bit - 1)
        upto = _count(high, last.astype(mx.uint16))
        # Tokens behind ``last`` weigh no more than one there: raised to that, all can be summed.
        own = table[last]
        behind = (masses.shape[1] - upto) * own.astype(mx.int64)
        weight = _total(mx.maximum(masses, own)) - behind
        enough = (upto >= top_k) | (weight >= share)
        first = mx.where(enough, first, last + 1)
        count, mass = mx.where(enough, count, upto), mx.where(enough, mass, weight)
    there = first < 2**_HIGH_BITS
    first = mx.minimum(first, 2**_HIGH_BITS - 1)
    own = mx.maximum(table[first], 1).astype(mx.int64)
    needed = count + (share - mass + own - 1) // own
    kept = mx.minimum(mx.where(there, needed, _ALL), top_k)
    return first, count, kept.astype(mx.int32)


def _nth(keys: mx.array, first: mx.array, before: mx.array, count: mx.array) -> Cut:
    """The ``count``-th token of the ranking: its key begins with ``first``, none of the ``before``
    first tokens' does."""
    key = first.astype(mx.uint32) << LOW_BITS
    for bit in reversed(range(LOW_BITS)):
        last = key + (2**bit - 1)
        upto = _count(keys, last)
        enough = upto >= count
        key, before = mx.where(enough, key, last + 1), mx.where(enough, before, upto)
    key = mx.minimum(key, LARGEST_KEY)
    return Cut(key, _nth_true(keys == key, count - before))


def _nth_true(flags: mx.array, number: mx.array) -> mx.array:
    """[R, 1]: the place of the ``number``-th true one of [R, V]; V where there are fewer."""
    rows, width = flags.shape
    lines = flags.reshape(rows, COLUMN, width // COLUMN)
    until = mx.cumsum(lines.sum(axis=2), axis=1)
    line = (until < number).sum(axis=1, keepdims=True)
    inside = mx.minimum(line, COLUMN - 1)
    # Whole lines are copied, which MLX's CPU build does far faster than element by element.
    numbers = COLUMN * mx.arange(rows, dtype=mx.int32) + inside[:, 0]
    own = flags.reshape(rows * COLUMN, -1)[numbers]
    upto = mx.take_along_axis(until, inside, axis=1)
    before = upto - own.sum(axis=1, keepdims=True)
    place = (before + mx.cumsum(own, axis=1) < number).sum(axis=1, keepdims=True)
    return mx.where(line < COLUMN, inside * (width // COLUMN) + place, width).astype(mx.int32)
