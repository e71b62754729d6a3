"""Sampling: logits in, tokens out, without sorting and without an array of noise.

The sample of a row is the Gumbel-max sample ``argmax((logit - top) / temperature + noise)`` over
the tokens that its filters keep (``sample_cuts``), with noise keyed by seed, position and token
(``noise``). It depends on nothing else: not on the batch, the row, the step, nor on how far the
vocabulary is padded. Ties go to the lower id, at filters and at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import mlx.core as mx

from metal_kernels._checks import check_array, fail
from metal_kernels._runtime import Operation
from metal_kernels.log_sum import log_sum
from metal_kernels.sample_kernel import kernel_race
from metal_kernels.sample_reference import largest_of, reference_race
from metal_kernels.sample_rows import Group, SampleRows

Race: TypeAlias = Callable[[mx.array, mx.array | None, mx.array, Group], mx.array]
"""From logits [B, N, V], the largest of them [B, N] if known, positions [B, N] and a group the
tokens [b, N] of its rows."""

MOST_TOKENS = 2**20  # a vocabulary below it has a mass that the kernel's sums hold


class Sampled(NamedTuple):
    """What a call gives.

    Attributes:
        tokens: [B, N] int32.
        logprobs: [B, N] float32, log-probability of each token by the softmax of the logits (with
            bias and mask; without temperature and filters); None unless asked for.
        confidence: [B, N] float32, the largest probability of that softmax; None likewise.
        tops: [B, N], the largest logit (with bias and mask), NaN if one is; None likewise.
    """

    tokens: mx.array
    logprobs: mx.array | None = None
    confidence: mx.array | None = None
    tops: mx.array | None = None


def _reference(
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    *,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
    logprobs: bool = False,
    tops: bool = False,
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
        tops: whether to give the largest logits, which rows that sample need anyway.

    Returns:
        Tokens, and what was asked for.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    values = _allowed(logits, bias, mask)
    return _with_more(_sample(reference_race, values, positions, rows, tops), values, logprobs)


def _kernel(
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    *,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
    logprobs: bool = False,
    tops: bool = False,
) -> Sampled:
    values = _allowed(logits, bias, mask)
    return _with_more(_sample(kernel_race, values, positions, rows, tops), values, logprobs)


def _sample(
    race: Race, values: mx.array, positions: mx.array, rows: SampleRows, tops: bool
) -> Sampled:
    """Greedy rows by argmax, each group of the others by ``race``."""
    largest = largest_of(values) if tops else None
    parts: list[mx.array] = []
    order: list[int] = []
    if rows.greedy:
        own = values if len(rows.greedy) == rows.batch else values[mx.array(rows.greedy, mx.int32)]
        parts.append(mx.argmax(own, axis=-1).astype(mx.int32))
        order += rows.greedy
    for group in rows.groups:
        parts.append(race(values, largest, positions, group))
        order += group.rows
    tokens = parts[0] if len(parts) == 1 else mx.concatenate(parts)[_inverse(order)]
    return Sampled(tokens, tops=largest)


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


def _with_more(sampled: Sampled, values: mx.array, logprobs: bool) -> Sampled:
    if not logprobs:
        return sampled
    wide = values.astype(mx.float32)
    total = log_sum(wide)[..., 0]
    own = mx.take_along_axis(wide, sampled.tokens[..., None], axis=-1)[..., 0]
    confidence = mx.exp(wide.max(axis=-1) - total)
    return sampled._replace(logprobs=own - total, confidence=confidence)


def _check(
    logits: mx.array,
    positions: mx.array,
    rows: SampleRows,
    *,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
    logprobs: bool = False,
    tops: bool = False,
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
