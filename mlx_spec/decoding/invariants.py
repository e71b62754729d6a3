"""The debug mode's checks: what must hold after every step, whatever was accepted.

Device and host agree on each row's length, and the target's K/V of its ``prompt + emitted - 1``
cached tokens are those that a lone sequence would have. Slow by design (each check decodes every
row again from the start).
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.errors import InvariantError
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence


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
    tolerance: float = 1e-3,
) -> None:
    """Compare the K/V of each row with a batch of one.

    Args:
        runner: the target and its slots.
        rows: sequences in slot order.
        finished: rows to skip: they end inside an accepted run.
        tolerance: largest allowed difference, relative to the largest value of the layer.

    Raises:
        InvariantError: a row's cache differs, or slots and rows do not match.
    """
    if runner.pool.used < len(rows):
        raise InvariantError(f"[check_rows] {runner.pool.used} slots used, {len(rows)} rows run")
    for slot, sequence in enumerate(rows):
        if sequence in finished or sequence.length < 2:
            continue
        cached = sequence.length - 1
        lone = make_prompt_cache(runner.model)
        runner.model(mx.array([(sequence.prompt + sequence.tokens)[:cached]]), cache=lone)
        for layer, (ours, theirs) in enumerate(zip(runner.pool.layers, lone, strict=True)):
            for name, mine, reference in zip(
                ("keys", "values"), ours.state, theirs.state, strict=False
            ):
                reference = reference[0, :, :cached]
                gap = mx.abs(mine[slot, :, :cached] - reference).max()
                if (gap > tolerance * mx.abs(reference).max()).item():
                    raise InvariantError(
                        f"[check_rows] {name} of layer {layer}, slot {slot} (request "
                        f"{sequence.index}, {cached} cached tokens) differ from a lone cache "
                        f"by {gap.item():.3g}"
                    )
