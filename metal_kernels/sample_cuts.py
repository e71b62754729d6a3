"""Where top-p, top-k and min-p cut a row's ranking, found without sorting it.

Tokens are ranked by probability, equal ones by id. What the filters keep is a beginning of that
ranking, so it is told by the last token kept: a key (its distance to the most probable token, in
2**-19 octaves, 24 bits) and an id. Keys are found by bisection; each step counts over the whole
row what lies above.

All sums are of integers: exact, in any order, on any device. A token's mass is 2**28 times its
probability over the largest, rounded down, by the upper 16 bits of its key::

    key     | octave, 5 bits | fraction, 11 bits | rest, 8 bits |
    mass    ( mantissa of the fraction, 15 bits ) << 13 >> octave

The most probable token has key 0 and nobody else. So logits within 1.4e-6 of each other count as
equal (a float32 of 8 or more resolves no more), masses are right to 4e-4 of themselves, shares of
all mass to 1e-4, and tokens below 4e-9 of the largest have no mass.

Temperature plays no part: filters look at the model's own probabilities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from metal_kernels.sample_counts import COUNTED, bin_by_count, bin_by_mass, low_by_count
from metal_kernels.sample_rows import KEY_BITS, LARGEST_KEY, Options

OCTAVES_PER_NAT = math.log2(math.e)
ALMOST_ONE = 1 - 2**-24  # added before truncation: only what is 0 stays 0

LOW_BITS = 8  # of a key, which mass does not look at
_HIGH_BITS = 16
_FRACTION_BITS = 11  # of the upper 16 are less than an octave
_FRACTION = 2**_FRACTION_BITS - 1
_MANTISSA_BITS = 15
_SPARE_BITS = 13  # octaves in which a mass loses none of its mantissa's bits

# 2**-f for f in [0, 1], within 4e-6; scaled below for f in 2**-11 and to stay under 2**15.
EXP2 = (0.99999804, -0.69304893, 0.2394306, -0.05321312, 0.00683515)
_SCALED = tuple(
    c * (1 - 2**-16) * 2.0 ** (_MANTISSA_BITS - _FRACTION_BITS * i) for i, c in enumerate(EXP2)
)

# Rows are seen as columns of 16 tokens, which MLX's CPU build reduces faster than rows; also,
# 16 times less than 2**28 is the most that 32 bits hold.
_WORK = 300_000  # elements that cost about what an operation itself does
COLUMN = 16


class Cut(NamedTuple):
    """The last token that a row keeps: [R, 1] int32 key, [R, 1] int32 id (of that key)."""

    key: mx.array
    token: mx.array


def ranks_of(below: mx.array) -> mx.array:
    """[R, V] int32 keys of tokens that lie so far ``below`` their row's largest logit."""
    scaled = below * (OCTAVES_PER_NAT * 2**KEY_BITS) + ALMOST_ONE
    return mx.minimum(scaled, float(LARGEST_KEY)).astype(mx.int32)


def dropped(keys: mx.array, options: Options) -> mx.array:
    """[R, V] uint8: 1 for tokens that the filters of the R rows drop; V a multiple of 16."""
    if not options.by_rank and not options.by_least:
        return (keys > options.lowest).view(mx.uint8)
    return behind(keys, _cuts(keys, options))


def behind(keys: mx.array, cut: Cut) -> mx.array:
    """[R, V] uint8: 1 for tokens that come after the last one kept."""
    # As bytes: MLX's CPU build takes truth values one at a time.
    after, equal = (keys > cut.key).view(mx.uint8), (keys == cut.key).view(mx.uint8)
    return after | (equal & (mx.arange(keys.shape[1]) > cut.token).view(mx.uint8))


def _cuts(keys: mx.array, options: Options) -> Cut:
    """The cut of each row that filters by rank."""
    lowest = Cut(options.lowest, mx.array(keys.shape[1], mx.int32))
    if options.by_least:  # min-p leaves so many: the later of the two
        kept = ranked_cut(keys, options.least)
        lowest = _select(kept.key > lowest.key, kept, lowest)
    if not options.by_rank:
        return lowest
    if options.by_mass:
        ranked = _nth(keys, *_first_bin_by_mass(keys >> LOW_BITS, options))
    else:
        ranked = ranked_cut(keys, options.top_k)
    stricter = lowest.key < ranked.key
    if options.by_least:
        stricter = stricter | ((lowest.key == ranked.key) & (lowest.token < ranked.token))
    return _select(stricter, lowest, ranked)


def ranked_cut(keys: mx.array, count: mx.array) -> Cut:
    """The ``count``-th tokens ([R, 1] int32) of rankings; the last ones where there are fewer."""
    return _nth(keys, *_first_bin(keys >> LOW_BITS, count))


def _select(first: mx.array, one: Cut, other: Cut) -> Cut:
    return Cut(mx.where(first, one.key, other.key), mx.where(first, one.token, other.token))


def mantissa_of(high: mx.array) -> mx.array:
    """2**15 times 2**-f, rounded down, for f the lower 11 of these 16 bits; both int32."""
    fraction = (high & _FRACTION).astype(mx.float32)
    total: mx.array = fraction * _SCALED[-1] + _SCALED[-2]
    for coefficient in _SCALED[-3::-1]:
        total = total * fraction + coefficient
    return total.astype(mx.int32)


def mass_of(high: mx.array, mantissa: mx.array) -> mx.array:
    """uint32 mass of tokens whose keys have these upper 16 bits, int32."""
    exponents = (_SPARE_BITS - (high >> _FRACTION_BITS)) * 2**23
    lowered = mantissa.astype(mx.float32).view(mx.int32) + exponents
    return lowered.view(mx.float32).astype(mx.uint32)


@functools.cache
def _tables() -> tuple[mx.array, mx.array]:
    """[2**16] int64 masses by upper half of a key; [2**11] uint16 mantissas by its fraction."""
    high = mx.arange(2**_HIGH_BITS, dtype=mx.int32)
    mantissas = mantissa_of(high)
    tables = (
        mass_of(high, mantissas).astype(mx.int64),
        mantissas[: 2**_FRACTION_BITS].astype(mx.uint16),
    )
    mx.eval(tables)
    return tables


def _search(
    bits: int, first: mx.array, size: int, enough: Callable[[mx.array], mx.array]
) -> mx.array:
    """The first of 2**bits numbers from ``first`` [R, 1] on that is enough; the last if none is.

    ``enough`` is asked about [R, T] numbers at once; ``size`` elements are what one of them costs.
    Where that is little, many are asked about, since each operation has a cost of its own.
    """
    radix = max(1, min(6, (_WORK // size + 1).bit_length() - 1))
    while bits:
        step = min(radix, bits)
        bits -= step
        last = first + (mx.arange(1, 2**step, dtype=mx.int32) * 2**bits - 1)
        lacking = mx.logical_not(enough(last)).sum(axis=1, keepdims=True)
        first = first + lacking * 2**bits
    return first


def total_of(masses: mx.array) -> mx.array:
    """int64 sums over the last axis."""
    columns = masses.reshape(*masses.shape[:-1], COLUMN, -1).sum(axis=-2)
    return columns.astype(mx.int64).sum(axis=-1)


def _weight(masses: mx.array, upto: mx.array, own: mx.array) -> mx.array:
    """[R, T] int64: of [R, V] the mass of the ``upto`` tokens that weigh ``own`` or more.

    The others are raised to ``own`` and taken off again: cheaper than to mask them.
    """
    raised = total_of(mx.maximum(masses[:, None], own.astype(masses.dtype)[..., None]))
    return raised - (masses.shape[1] - upto) * own


def _share(total: mx.array, top_p: mx.array) -> mx.array:
    """``top_p * total`` in int64, at least 1; ``total`` in two parts, or 64 bits overflow."""
    above, below = total >> 23, total & (2**23 - 1)
    return mx.maximum(((above * top_p) >> 8) + ((below * top_p) >> 31), 1)


def _number(flags: mx.array) -> mx.array:
    """int32: how many of the last axis are true.

    Four bytes at a time, of which none overflows: MLX's CPU build sums words as fast as bytes.
    """
    if flags.shape[-1] % (4 * COLUMN):
        return flags.sum(axis=-1)
    words = flags.view(mx.uint32).reshape(*flags.shape[:-1], COLUMN, -1).sum(axis=-2)
    return words.view(mx.uint8).sum(axis=-1).astype(mx.int32)


def _upto(keys: mx.array, last: mx.array) -> mx.array:
    """[R, T] int32: tokens of keys [R, V] (uint16) that are at most ``last`` [R, T]."""
    return _number(keys[:, None] <= last.astype(mx.uint16)[..., None])


def _before(keys: mx.array, first: mx.array) -> mx.array:
    """[R, T] int32: tokens of keys [R, V] (uint16) that are less than ``first`` [R, T]."""
    return _number(keys[:, None] < first.astype(mx.uint16)[..., None])


def _first_bin(wide: mx.array, count: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The first upper half of a key up to which there are ``count`` tokens; those before; count."""
    if wide.shape[1] >= COUNTED:
        return bin_by_count(wide, count)
    high = wide.astype(mx.uint16)
    start = mx.zeros_like(count)
    first = _search(_HIGH_BITS, start, high.size, lambda last: _upto(high, last) >= count)
    return first, _before(high, first), count


def _first_bin_by_mass(wide: mx.array, options: Options) -> tuple[mx.array, mx.array, mx.array]:
    """The bin in which mass reaches its share or the count ``top_k``; tokens before; tokens kept.

    All [R, 1] int32. First the octave, among masses of 32 bits, then the bin in it among those of
    its tokens alone, which are their mantissas and have 16.
    """
    if wide.shape[1] >= COUNTED:
        return _counted_bin_by_mass(wide, options)
    table, mantissas = _tables()
    high, mantissa = wide.astype(mx.uint16), mantissa_of(wide)
    masses, nothing = mass_of(wide, mantissa), mx.zeros_like(options.top_k)
    share = _share(total_of(masses)[:, None], options.top_p)

    def reached(upto: mx.array, weight: mx.array) -> mx.array:
        enough = weight >= share
        return enough | (upto >= options.top_k) if options.by_count else enough

    def by_octave(octave: mx.array) -> mx.array:
        last = (octave << _FRACTION_BITS) + _FRACTION
        upto = _upto(high, last)
        return reached(upto, _weight(masses, upto, table[last]))

    octave = _search(5, nothing, high.size, by_octave)
    start = octave << _FRACTION_BITS
    before = _before(high, start)
    mass = _weight(masses, before, table[mx.maximum(start - 1, 0)])
    # Tokens of other octaves: no mass, and places behind all.
    lost, scale = mx.maximum(octave - _SPARE_BITS, 0), mx.maximum(_SPARE_BITS - octave, 0)
    place = high - start.astype(mx.uint16)
    here = (place <= _FRACTION).view(mx.uint8).astype(mx.uint16)
    inside = (mantissa.astype(mx.uint16) >> lost.astype(mx.uint16)) * here

    def weight(upto: mx.array, last: mx.array) -> mx.array:
        # Times tokens, which 32 bits hold no more from 65,538 tokens on.
        own = mantissas[last].astype(mx.int64) >> lost
        return mass + (_weight(inside, upto, own) << scale)

    def by_place(last: mx.array) -> mx.array:
        upto = _upto(place, last)
        return reached(before + upto, weight(upto, last))

    last = _search(_FRACTION_BITS, nothing, high.size, by_place)
    upto = _before(place, last)
    mass = weight(upto, mx.maximum(last - 1, 0))
    own = mx.maximum(table[start + last], 1)
    kept = mx.minimum(before + upto + (share - mass + own - 1) // own, options.top_k)
    return start + last, before + upto, kept.astype(mx.int32)


def _counted_bin_by_mass(high: mx.array, options: Options) -> tuple[mx.array, mx.array, mx.array]:
    """What ``_first_bin_by_mass`` gives, from the number of tokens in each bin."""
    table, _ = _tables()

    def share(total: mx.array) -> mx.array:
        return _share(total, options.top_p)

    found = bin_by_mass(high, table, share, options.top_k if options.by_count else None)
    missing = (found.share - found.mass + found.own - 1) // found.own
    kept = mx.minimum(found.before + missing, options.top_k).astype(mx.int32)
    return found.first, found.before, kept


def _nth(keys: mx.array, first: mx.array, before: mx.array, count: mx.array) -> Cut:
    """The ``count``-th token of the ranking: its key begins with ``first``, none of the ``before``
    first tokens' does."""
    start, missing = first << LOW_BITS, count - before
    if keys.shape[1] >= COUNTED:
        own, fewer = low_by_count(keys - start, missing)
        return Cut(start + own, _nth_true(keys == start + own, missing - fewer))
    # Lower halves of the keys that begin so; of others whatever is more, read as unsigned.
    low = mx.minimum((keys - start).view(mx.uint32), 2**LOW_BITS).astype(mx.uint16)
    nothing = mx.zeros_like(first)
    own = _search(LOW_BITS, nothing, keys.size, lambda last: _upto(low, last) >= missing)
    return Cut(start + own, _nth_true(keys == start + own, missing - _before(low, own)))


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
