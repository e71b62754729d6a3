"""The debug mode's checks: what must hold after every step, whatever was accepted.

Device and host agree on each row's length, and what the target's caches hold of its ``prompt +
emitted - 1`` cached tokens is what they hold of a lone sequence that was read in one pass, layer by
layer and array by array, whatever the kind of cache. Slow by design (each check reads every row
again from the start).
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Any, cast

import mlx.core as mx

from mlx_spec.cache.layer import RowState
from mlx_spec.cache.layout import plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.errors import InvariantError
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence

TOLERANCE = 1e-3  # largest difference, relative to the largest value of a layer's array


def check_lengths(
    lengths: mx.array, rows: Seq[Sequence], finished: Collection[Sequence] = ()
) -> None:
    """Compare the device's lengths [B] with what the host knows: prompt + emitted tokens.

    Raises:
        InvariantError: a running row's lengths differ.
    """
    on_device = cast("list[int]", lengths.tolist())
    for slot, (length, sequence) in enumerate(zip(on_device, rows, strict=True)):
        if sequence not in finished and length != sequence.length:
            raise InvariantError(
                f"[check_lengths] slot {slot} (request {sequence.index}) has {length} known "
                f"tokens on the device, {sequence.length} on the host"
            )


def check_rows(
    runner: ModelRunner,
    rows: Seq[Sequence],
    finished: Collection[Sequence] = (),
) -> None:
    """Compare the K/V of each row with a batch of one.

    Args:
        runner: the target and its slots.
        rows: sequences in slot order.
        finished: rows to skip: they end inside an accepted run.

    Raises:
        InvariantError: a row's cache differs, or slots and rows do not match.
    """
    if runner.pool.used < len(rows):
        raise InvariantError(f"[check_rows] {runner.pool.used} slots used, {len(rows)} rows run")
    for slot, sequence in enumerate(rows):
        if sequence in finished or sequence.length < 2:
            continue
        cached = sequence.length - 1
        tokens = (sequence.prompt + sequence.tokens)[:cached]
        expected = _lone(runner, tokens)
        held = runner.pool.save(slot, 0, cached)
        own = held.parts[: len(expected.parts)]  # a head's layers stand behind the model's
        for layer, (ours, theirs) in enumerate(zip(own, expected.parts, strict=True)):
            for place, gap in enumerate(_gaps(ours, theirs)):
                if gap > TOLERANCE:
                    raise InvariantError(
                        f"[check_rows] array {place} of layer {layer}, slot {slot} (request "
                        f"{sequence.index}, {cached} cached tokens) differs from a lone cache "
                        f"by {gap:.3g} of its largest value"
                    )


def _lone(runner: ModelRunner, tokens: list[int]) -> RowState:
    """What caches of one row hold after one pass over ``tokens``."""
    pool, width = KVCachePool(plan(runner.model, runner.options), 1), len(tokens)
    pool.acquire(1)
    pool.reserve(width)
    support = runner.support
    alone = make_pass(support.form, runner.model, pool, grouped=support.grouped_masks)
    alone.forward(Rows(mx.array([tokens]), mx.zeros(1, mx.int32), width, uniform=True))
    return pool.save(0, 0, width)


def _gaps(ours: RowState, theirs: RowState) -> list[float]:
    """The largest difference of each array, relative to its largest value."""
    gaps = []
    for (mine, step), (other, _) in zip(_numbers(ours), _numbers(theirs), strict=True):
        mine, other = mine.astype(mx.float32), other.astype(mx.float32)
        largest = mx.maximum(mx.abs(other).max(), 1e-30)
        apart = mx.maximum(mx.abs(mine - other).max() - 1.01 * step, 0.0)
        gaps.append(cast("float", (apart / largest).item()))
    return gaps


def _numbers(state: RowState) -> list[tuple[mx.array, Any]]:
    """All arrays of a row, each with what the smallest rounding may make of it; those that stand
    for other numbers (``note.numbers``) as these."""
    meant = getattr(state.note, "numbers", None)
    own = [(array, 0.0) for array in state.arrays] if meant is None else meant(state.arrays)
    own = [pair for pair in own if pair[0].size]
    return [*own, *(pair for part in state.parts for pair in _numbers(part))]
