"""Where a ranking is cut, from how many tokens have each key: two looks instead of a bisection.

The upper 16 bits of keys are counted first, then the lower 8 of those tokens whose upper ones are
at the cut. Counting needs one pass over the vocabulary; sums over bins are taken by blocks of 256,
so that only one block of a row is looked at bin by bin::

    bins      |--- block 0 ---|--- block 1 ---|--- block 2 ---| ...     256 of 256 bins
    upto             40              95             120                 enough from 100 on: block 2
    in block  |  96  |  99  |  99  |  103  | ...                        and in it bin 3
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

COUNTED = 2**14  # tokens of a vocabulary from which on this is quicker than bisection
_BLOCK = 2**8  # bins, and blocks of them
_LOW = 2**8  # lower halves of keys


class MassBin(NamedTuple):
    """The bin in which mass reaches its share, or tokens their number; all [R, 1].

    Attributes:
        first: int32, which.
        before: int32, tokens in the bins before.
        mass: int64, of these.
        own: int64, of one token of the bin, at least 1.
        share: int64, what was to be reached.
    """

    first: mx.array
    before: mx.array
    mass: mx.array
    own: mx.array
    share: mx.array


def counts_of(numbers: mx.array, bins: int) -> mx.array:
    """[R, bins] int32: how many of [R, V] are each number. Exact: they stay below 2**24.

    As the gradient of a gather, which MLX's CPU build takes 20 times faster than a scatter.
    """
    ones = mx.broadcast_to(mx.ones((1, 1)), numbers.shape)
    empty = mx.zeros((len(numbers), bins))
    gather = functools.partial(mx.take_along_axis, indices=numbers, axis=1)
    _, (counts,) = mx.vjp(gather, [empty], [ones])
    return counts.astype(mx.int32)


def bin_by_count(high: mx.array, count: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The first bin up to which there are ``count`` tokens; those before it; ``count``.

    Args:
        high: [R, V] integers, the bins of all tokens.
        count: [R, 1] int32.
    """
    lines = counts_of(high, _BLOCK * _BLOCK).reshape(-1, _BLOCK, _BLOCK)
    by_block = mx.cumsum(lines.sum(axis=2), axis=1)
    block = _first_true(by_block >= count)
    before = _previous(by_block, block)
    upto = before + mx.cumsum(_line(lines, block), axis=1)
    place = _first_true(upto >= count)
    return block * _BLOCK + place, _previous(upto, place, before), count


def bin_by_mass(
    high: mx.array,
    table: mx.array,
    share: Callable[[mx.array], mx.array],
    most: mx.array | None = None,
) -> MassBin:
    """The first bin up to which there is a share of all mass, or a number of tokens.

    Args:
        high: [R, V] integers, the bins of all tokens.
        table: [2**16] int64, the mass of a token by its bin.
        share: gives of all mass [R, 1] what is to be reached.
        most: [R, 1] int32 tokens; None for any number.
    """
    masses = table.reshape(_BLOCK, _BLOCK)
    lines = counts_of(high, _BLOCK * _BLOCK).reshape(-1, _BLOCK, _BLOCK)
    number, mass = mx.cumsum(lines.sum(axis=2), axis=1), (lines * masses).sum(axis=2)
    mass = mx.cumsum(mass, axis=1)
    wanted = share(mass[:, -1:])

    def reached(number: mx.array, mass: mx.array) -> mx.array:
        enough = mass >= wanted
        return _first_true(enough if most is None else enough | (number >= most))

    block = reached(number, mass)
    fewer, less = _previous(number, block), _previous(mass, block)
    own = _line(lines, block)
    number = fewer + mx.cumsum(own, axis=1)
    mass = less + mx.cumsum(own * masses[block[:, 0]], axis=1)
    place = reached(number, mass)
    first = block * _BLOCK + place
    return MassBin(
        first,
        _previous(number, place, fewer),
        _previous(mass, place, less),
        mx.maximum(table[first], 1),
        wanted,
    )


def low_by_count(beyond: mx.array, count: mx.array) -> tuple[mx.array, mx.array]:
    """The first lower half of a key up to which there are ``count`` tokens; those before it.

    Args:
        beyond: [R, V] int32, how far keys lie beyond the first one of their bin; those outside
            0..255 are of other bins.
        count: [R, 1] int32, tokens of the bin.
    """
    low = mx.minimum(beyond.view(mx.uint32), _elsewhere(beyond.shape[1]))
    upto = mx.cumsum(counts_of(low, 2 * _LOW)[:, :_LOW], axis=1)
    own = _first_true(upto >= count)
    return own, _previous(upto, own)


@functools.lru_cache(maxsize=8)
def _elsewhere(vocabulary: int) -> mx.array:
    """[V] uint32: where tokens of other bins are counted, far from their neighbours: adding to one
    place again and again is slow. 4 bytes a token, kept."""
    places = (mx.arange(vocabulary, dtype=mx.uint32) & (_LOW - 1)) + _LOW
    mx.eval(places)
    return places


def _line(lines: mx.array, block: mx.array) -> mx.array:
    """[R, 256]: of [R, 256, 256] the block [R, 1] of each row."""
    rows = _BLOCK * mx.arange(len(lines), dtype=mx.int32) + block[:, 0]
    return lines.reshape(-1, _BLOCK)[rows]


def _first_true(flags: mx.array) -> mx.array:
    """[R, 1] int32: the place of the first true one, all behind which are; the last if none is."""
    place = flags.shape[1] - flags.sum(axis=1, keepdims=True)
    return mx.minimum(place, flags.shape[1] - 1).astype(mx.int32)


def _previous(sums: mx.array, place: mx.array, first: mx.array | int = 0) -> mx.array:
    """[R, 1]: the sum before a place, of those up to each; ``first`` before the first one."""
    found = mx.take_along_axis(sums, mx.maximum(place - 1, 0), axis=1)
    return mx.where(place > 0, found, first)
