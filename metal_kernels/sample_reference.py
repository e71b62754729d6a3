"""Sampling of one group of rows by MLX's operations.

It looks twice. The noise is at most ``-log w`` with w its uniform number, and the
first word of w with a float's exponent for a logarithm gives a bound that is at most 0.06 above
that. Tokens are seen as columns; those of the 32 columns with the highest bounds are evaluated
exactly, among which are the 32 tokens with the highest bounds::

    token    0 |  1 |  2 | .. | C-1      width V = height * C
             C | C+1| C+2| ..            the best bound of each column,
            2C | .. |                    the 32 best columns, all their tokens

The winner is missed only if 32 other tokens have higher bounds than it and lower scores. In terms
of exponential times E / p (p the tempered probability), of which the winner has the least, x: each
of them has E > x p and a lower estimate, at least 0.94 (1 - exp(-E)), below x p. For small x p that
has probability 0.064 x p, so that their number is about Poisson with a mean of 0.064 x, and 32 of
them come with 0.06**32; for large x p it becomes certain, but then all E / p being that large has
probability exp(-0.94 * 32) = 1e-13. The kernel evaluates every token whose bound is above the best
score so far, and so never misses.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from metal_kernels.noise import LN2, Keys, first_word, gumbel, row_keys, second_word, token_words
from metal_kernels.sample_counts import COUNTED
from metal_kernels.sample_cuts import COLUMN, dropped, ranks_of
from metal_kernels.sample_exclusion import excluded
from metal_kernels.sample_rows import Group, Options

# Columns whose tokens are evaluated exactly; see the docstring before making it smaller.
LEADING = 32
_HEIGHTS = ((2**15, 32), (2**13, 16), (2**10, 8))  # of columns, from so many tokens on
# Elements that MLX's CPU build is given at a time: where bounds are sought; altogether; and where
# filters make a dozen arrays of that size.
_WORK, _MOST_WORK, _FILTER_WORK = 160_000, 480_000, 320_000
_ALL = 2**20  # rows
_FAR = 3e38  # what a dropped token lies below the top


class _Field(NamedTuple):
    """Tokens among which a row's winner is, all but certainly; of R rows.

    Attributes:
        tokens: [R, L] int32.
        below: [R, L] float32, how far they lie below the top; those that are dropped farther than
            any.
    """

    tokens: mx.array
    below: mx.array


def largest_of(values: mx.array) -> mx.array:
    """[...] of [..., V]; over columns first, which MLX's CPU build is quicker at."""
    if values.shape[-1] % COLUMN:
        return values.max(axis=-1)
    return values.reshape(*values.shape[:-1], COLUMN, -1).max(axis=-2).max(axis=-1)


def reference_race(
    values: mx.array, largest: mx.array | None, positions: mx.array, group: Group
) -> mx.array:
    """[b, N] tokens of a group's rows of [B, N, V]."""
    batch, places, vocabulary = values.shape
    whole = len(group.rows) == batch
    keys = row_keys(group.seeds, positions if whole else positions[group.index])
    keys = Keys(keys.one.reshape(-1, 1), keys.two.reshape(-1, 1))
    flat, options = values.reshape(-1, vocabulary), group.spread(places)
    tops = None if largest is None else largest.reshape(-1, 1)
    units = (group.index[:, None] * places + mx.arange(places)).reshape(-1)
    work = _FILTER_WORK if group.filters else _MOST_WORK
    count, step = len(group.rows) * places, _rows_at_a_time(vocabulary, work)
    if group.filters and step < _ALL:  # six times what is worked on is alive
        share = 4 if vocabulary >= COUNTED else 2
        step = min(step, max(1, count // share))
    fields: list[_Field] = []
    for start in range(0, count, step):
        part = slice(start, start + step)
        own = part if whole else units[part]
        top = None if tops is None else tops[own]
        part_keys = keys if count <= step else Keys(keys.one[part], keys.two[part])
        part_options = options if count <= step else options.part(part)
        done = [field.below for field in fields]
        fields.append(_field(_after(done, flat[own]), top, part_keys, part_options))
    tokens = _winners(fields, keys, options.inverse_temperature, vocabulary)
    # Out of reach unless the logits hold NaN.
    return mx.minimum(tokens, vocabulary - 1).reshape(len(group.rows), places)


def _after(parts: list[mx.array], values: mx.array) -> mx.array:
    """Values that are not touched before the parts so far are done, which bounds what is alive."""
    return mx.depends([values], parts[-1:])[0] if parts else values


def _rows_at_a_time(vocabulary: int, work: int) -> int:
    """MLX's CPU build keeps the outputs of ten operations alive: for few rows, that is little."""
    if mx.default_device() != mx.Device(mx.cpu):
        return _ALL
    return max(1, work // vocabulary)


def _field(values: mx.array, top: mx.array | None, keys: Keys, options: Options) -> _Field:
    """Of ``values`` [R, V] and their largest, if known; all others [R, 1]."""
    height = _height(values.shape[1])
    values = _padded(values, max(height, COLUMN if options.filters else 1))
    top = (largest_of(values)[:, None] if top is None else top).astype(mx.float32)
    drop = _drops(values, top, keys, options) if options.filters else None
    tokens = _leaders(values, top, drop, keys, options)
    below = top - mx.take_along_axis(values, tokens, axis=1)
    if drop is not None:
        below = below + mx.take_along_axis(drop, tokens, axis=1).astype(mx.float32) * _FAR
    return _Field(tokens, below)


def _winners(fields: list[_Field], keys: Keys, rate: mx.array, vocabulary: int) -> mx.array:
    """[R] int32 tokens of all rows; ``keys`` and ``rate`` (inverse temperature) are [R, 1]."""
    tokens, below = map(_joined, zip(*fields, strict=True))
    words = token_words(vocabulary + COLUMN * LEADING)[tokens]  # padding is among them
    first = first_word(words, keys)
    scores = gumbel(first, second_word(first, keys)) - below * rate
    best = scores == scores.max(axis=1, keepdims=True)
    return mx.where(best, tokens, vocabulary).min(axis=1)


def _joined(parts: tuple[mx.array, ...]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts))


def _drops(values: mx.array, top: mx.array, keys: Keys, options: Options) -> mx.array:
    """[R, V] uint8: 1 for tokens that the filters of the R rows drop."""
    ranks = ranks_of(top - values)
    drop = dropped(ranks, options)
    return drop if options.exclusion is None else excluded(ranks, drop, options.exclusion, keys)


def kept(values: mx.array, keys: Keys, options: Options) -> mx.array:
    """[R, V] float32: how far each token lies below the top (<= 0), -inf where a filter drops it.

    Args:
        values: [R, V] logits.
        keys: of the noise, [R, 1]: for filters that toss coins.
        options: of the R rows.
    """
    vocabulary = values.shape[1]
    values = _padded(values, COLUMN if options.filters else 1)
    top = largest_of(values)[:, None]
    below = values - top
    if options.filters:
        below = mx.where(_drops(values, top, keys, options).view(mx.bool_), -mx.inf, below)
    return below[:, :vocabulary]


def _leaders(
    values: mx.array, top: mx.array, drop: mx.array | None, keys: Keys, options: Options
) -> mx.array:
    """[R, L] int32: tokens of the highest bounds, in any order.

    Whole columns of tokens: those whose best one is among the best 32.
    """
    rows, width = values.shape
    height = _height(width)
    columns, tokens = width // height, mx.arange(width, dtype=mx.int32)
    if columns <= LEADING:
        return mx.broadcast_to(tokens, values.shape)
    rate = options.inverse_temperature * (2.0**23 / LN2)
    words, step = token_words(width), _rows_at_a_time(width, _WORK)
    parts: list[mx.array] = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        own, one = _after(parts, values[part]), _after(parts, keys.one[part])
        first = first_word(words, Keys(one, keys.two[part]))
        # Float's bits are exponent and mantissa: a logarithm with corners, never above the true.
        costs = first.astype(mx.float32).view(mx.int32).astype(mx.float32)
        costs = costs + (top[part] - own) * rate[part]
        if drop is not None:
            costs = costs + drop[part].astype(mx.float32) * _FAR
        parts.append(costs.reshape(-1, height, columns).min(axis=1) if height > 1 else costs)
    least = parts[0] if len(parts) == 1 else mx.concatenate(list(parts))
    best = mx.argpartition(least, LEADING - 1, axis=1)[:, None, :LEADING].astype(mx.int32)
    lines = columns * mx.arange(height, dtype=mx.int32)[:, None]
    return (best + lines).reshape(rows, -1)


def _height(vocabulary: int) -> int:
    """Of the columns in which the best are sought: the more, the fewer to choose from."""
    return next((height for least, height in _HEIGHTS if vocabulary >= least), 1)


def _padded(values: mx.array, multiple: int) -> mx.array:
    """float32, with -inf up to a multiple of so many tokens."""
    missing = -values.shape[1] % multiple
    values = values.astype(mx.float32)
    return mx.pad(values, [(0, 0), (0, missing)], constant_values=-mx.inf) if missing else values
