"""Sampling: logits in, tokens out, without sorting and without an array of noise.

The sample of a row is the Gumbel-max sample ``argmax((logit - top) / temperature + noise)`` over
the tokens that its filters keep (``sample_cuts``), with noise keyed by seed, position and token
(``noise``). It depends on nothing else: not on the batch, the row, the step, nor on how far the
vocabulary is padded. Ties go to the lower id, at filters and at the end.

**The reference looks twice.** The noise is at most ``-log w`` with w its uniform number, and the
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

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import mlx.core as mx

from metal_kernels._checks import check_array, fail
from metal_kernels._runtime import Operation
from metal_kernels.noise import LN2, Keys, first_word, gumbel, row_keys, second_word, token_words
from metal_kernels.sample_cuts import COLUMN, dropped, ranks_of
from metal_kernels.sample_kernel import kernel_race
from metal_kernels.sample_rows import Group, Options, SampleRows

Race: TypeAlias = Callable[[mx.array, mx.array, Group], mx.array]
"""From logits [B, N, V], positions [B, N] and a group the tokens [b, N] of its rows."""

MOST_TOKENS = 2**20  # a vocabulary below it has a mass that the kernel's sums hold

# Columns whose tokens are evaluated exactly; see the docstring before making it smaller.
LEADING = 32
_HEIGHTS = ((2**15, 32), (2**13, 16), (2**10, 8))  # of columns, from so many tokens on
# Elements that MLX's CPU build is given at a time: where bounds are sought, and altogether.
_WORK, _MOST_WORK = 160_000, 800_000
_FAR = 3e38  # what a dropped token lies below the top


class Sampled(NamedTuple):
    """What a call gives.

    Attributes:
        tokens: [B, N] int32.
        logprobs: [B, N] float32, log-probability of each token by the softmax of the logits (with
            bias and mask; without temperature and filters); None unless asked for.
        confidence: [B, N] float32, the largest probability of that softmax; None likewise.
    """

    tokens: mx.array
    logprobs: mx.array | None = None
    confidence: mx.array | None = None


def _reference(
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    *,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
    logprobs: bool = False,
) -> Sampled:
    """A token for each row and position.

    Args:
        logits: [B, N, V] float32, float16 or bfloat16; computed with in float32.
        positions: [B, N] integers, of the tokens that are chosen.
        rows: seeds and options of the B rows.
        bias: [B, N, V] or what broadcasts to it, added to the logits.
        mask: [B, N, ceil(V / 32)] uint32; token t is allowed where bit t % 32 of word t // 32 is
            set. At least one token must be.
        logprobs: whether to give log-probabilities and confidence.

    Returns:
        Tokens, and what was asked for.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    return _sample(_race, logits, positions, rows, bias, mask, logprobs)


def _kernel(
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    *,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
    logprobs: bool = False,
) -> Sampled:
    return _sample(kernel_race, logits, positions, rows, bias, mask, logprobs)


def _sample(
    race: Race,
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    bias: mx.array | None,
    mask: mx.array | None,
    logprobs: bool,
) -> Sampled:
    """Greedy rows by argmax, each group of the others by ``race``."""
    values = _allowed(logits, bias, mask)
    parts: list[mx.array] = []
    order: list[int] = []
    if rows.greedy:
        own = values if len(rows.greedy) == rows.batch else values[mx.array(rows.greedy, mx.int32)]
        parts.append(mx.argmax(own, axis=-1).astype(mx.int32))
        order += rows.greedy
    for group in rows.groups:
        parts.append(race(values, positions, group))
        order += group.rows
    tokens = parts[0] if len(parts) == 1 else mx.concatenate(parts)[_inverse(order)]
    return _with_probabilities(tokens, values) if logprobs else Sampled(tokens)


def _race(values: mx.array, positions: mx.array, group: Group) -> mx.array:
    """[b, N] tokens of a group's rows of [B, N, V]."""
    batch, places, vocabulary = values.shape
    whole = len(group.rows) == batch
    keys = row_keys(group.seeds, positions if whole else positions[group.index])
    keys = Keys(keys.one.reshape(-1, 1), keys.two.reshape(-1, 1))
    flat, options = values.reshape(-1, vocabulary), group.spread(places)
    count, step = len(group.rows) * places, _rows_at_a_time(vocabulary, _MOST_WORK)
    if count <= step and whole:
        tokens = _winners(flat, keys, options)
    else:
        units = (group.index[:, None] * places + mx.arange(places)).reshape(-1)
        parts = []
        for start in range(0, count, step):
            part = slice(start, start + step)
            own = flat[part] if whole else flat[units[part]]
            parts.append(_winners(own, Keys(*(key[part] for key in keys)), options.part(part)))
        tokens = mx.concatenate(parts)
    # Out of reach unless the logits hold NaN.
    return mx.minimum(tokens, vocabulary - 1).reshape(len(group.rows), places)


def _rows_at_a_time(vocabulary: int, work: int) -> int:
    """MLX's CPU build keeps the outputs of ten operations alive: for few rows, that is little."""
    if mx.default_device() != mx.Device(mx.cpu):
        return 2**20
    return max(1, work // vocabulary)


def _winners(values: mx.array, keys: Keys, options: Options) -> mx.array:
    """[R] int32 tokens for ``values`` [R, V]; keys [R, 1]."""
    height = _height(values.shape[1])
    values = _padded(values, max(height, COLUMN if options.filters else 1))
    top = _largest(values).astype(mx.float32)
    drop = None
    if options.filters:
        drop = dropped(ranks_of(top - values), options)
    tokens = _leaders(values, top, drop, keys, options)
    below = top - mx.take_along_axis(values, tokens, axis=1)
    if drop is not None:
        below = below + mx.take_along_axis(drop, tokens, axis=1).astype(mx.float32) * _FAR
    first = first_word(token_words(values.shape[1])[tokens], keys)
    scores = gumbel(first, second_word(first, keys)) - below * options.inverse_temperature
    best = scores == scores.max(axis=1, keepdims=True)
    return mx.where(best, tokens, values.shape[1]).min(axis=1)


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
    parts = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        first = first_word(words, Keys(keys.one[part], keys.two[part]))
        # Float's bits are exponent and mantissa: a logarithm with corners, never above the true.
        costs = first.astype(mx.float32).view(mx.int32).astype(mx.float32)
        costs = costs + (top[part] - values[part]) * rate[part]
        if drop is not None:
            costs = costs + drop[part].astype(mx.float32) * _FAR
        parts.append(costs.reshape(-1, height, columns).min(axis=1) if height > 1 else costs)
    least = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    best = mx.argpartition(least, LEADING - 1, axis=1)[:, None, :LEADING].astype(mx.int32)
    lines = columns * mx.arange(height, dtype=mx.int32)[:, None]
    return (best + lines).reshape(rows, -1)


def _height(vocabulary: int) -> int:
    """Of the columns in which the best are sought: the more, the fewer to choose from."""
    return next((height for least, height in _HEIGHTS if vocabulary >= least), 1)


def _largest(values: mx.array) -> mx.array:
    """[R, 1]; over columns first, which MLX's CPU build is quicker at."""
    rows, width = values.shape
    if width % COLUMN:
        return values.max(axis=1, keepdims=True)
    return values.reshape(rows, COLUMN, -1).max(axis=1).max(axis=1, keepdims=True)


def _padded(values: mx.array, multiple: int) -> mx.array:
    """float32, with -inf up to a multiple of so many tokens."""
    missing = -values.shape[1] % multiple
    values = values.astype(mx.float32)
    return mx.pad(values, [(0, 0), (0, missing)], constant_values=-mx.inf) if missing else values


def _inverse(order: list[int]) -> mx.array:
    places = [0] * len(order)
    for place, row in enumerate(order):
        places[row] = place
    return mx.array(places, mx.int32)


def _allowed(logits: mx.array, bias: mx.array | None, mask: mx.array | None) -> mx.array:
    """Logits with the bias, -inf where the mask forbids."""
    if bias is not None:
        logits = logits.astype(mx.float32) + bias.astype(mx.float32)
    if mask is None:
        return logits
    bits = (mask[..., None] >> mx.arange(32, dtype=mx.uint32)) & 1
    bits = bits.reshape(*mask.shape[:-1], -1)[..., : logits.shape[-1]]
    # As floats: +inf where the bit is set, -inf elsewhere.
    limits = (mx.array(0xFF800000, mx.uint32) - (bits << 31)).view(mx.float32)
    return mx.minimum(logits.astype(mx.float32), limits)


def _with_probabilities(tokens: mx.array, values: mx.array) -> Sampled:
    wide = values.astype(mx.float32)
    total = mx.logsumexp(wide, axis=-1)
    own = mx.take_along_axis(wide, tokens[..., None], axis=-1)[..., 0]
    return Sampled(tokens, own - total, mx.exp(wide.max(axis=-1) - total))


def _check(
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    *,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
    logprobs: bool = False,
) -> None:
    check_array("sample", "logits", logits, "B N V")
    batch, places, vocabulary = logits.shape
    if rows.batch != batch:
        raise fail("sample", f"options of {rows.batch} rows, logits of {batch}")
    if not 0 < vocabulary < MOST_TOKENS:
        raise fail("sample", f"{vocabulary} tokens, expected 1..{MOST_TOKENS - 1}")
    if positions.shape != (batch, places) or not mx.issubdtype(positions.dtype, mx.integer):
        what = f"{positions.dtype} of shape {positions.shape}"
        raise fail("sample", f"positions are {what}, expected integers of {(batch, places)}")
    if bias is not None:
        check_array("sample", "bias", bias, "... V")
        wide = (1,) * (3 - bias.ndim) + bias.shape
        if any(one not in (1, other) for one, other in zip(wide, logits.shape, strict=False)):
            raise fail("sample", f"bias has shape {bias.shape}, logits {logits.shape}")
    words = (batch, places, -(-vocabulary // 32))
    if mask is not None and (mask.shape != words or mask.dtype != mx.uint32):
        what = f"{mask.dtype} of shape {mask.shape}"
        raise fail("sample", f"mask is {what}, expected mlx.core.uint32 of {words}")


sample = Operation("sample", _check, _reference, _kernel)
