"""Launching the sampling kernels of one group of rows: the cuts, then the race.

The cut is one threadgroup a row, which bisects as the reference does; the race is spread over
parts of the vocabulary. Nothing of the vocabulary's size is written.
"""

from __future__ import annotations

import mlx.core as mx

from metal_kernels import _runtime
from metal_kernels._runtime import unread
from metal_kernels.noise_table import gumbel_table
from metal_kernels.sample_rows import Group

_FILE = "sample.metal"
_CUT_THREADS = 1024
_RACE_THREADS = 256
_SPLIT = 4096  # tokens of a threadgroup of the race


def kernel_race(
    values: mx.array, largest: mx.array | None, positions: mx.array, group: Group
) -> mx.array:
    """[b, N] tokens of a group's rows of [B, N, V], of the winner in each."""
    _, places, vocabulary = values.shape
    units = len(group.rows) * places
    tops = (values.max(axis=-1) if largest is None else largest).astype(mx.float32)
    cut = _cuts(values, tops, group) if group.filters else (unread(), unread())
    parts = -(-vocabulary // _SPLIT)
    threads = min(_RACE_THREADS, _warps(vocabulary))
    kernel = _runtime.build(
        "sample_race",
        _FILE,
        ["race"],
        [
            *("logits", "tops", "positions", "index", "seeds", "inverse_temperature"),
            *("cut_key", "cut_token", "table"),
        ],
        ["score", "token"],
    )
    score, token = kernel(
        inputs=[
            *(values, tops, positions.astype(mx.int32), group.index),
            *(group.seeds, group.inverse_temperature, *cut, gumbel_table()),
        ],
        template=[
            *(("V", vocabulary), ("N", places), ("FILTERS", group.filters)),
            *(("THREADS", threads), ("SPLIT", _SPLIT), ("PARTS", parts)),
        ],
        grid=(parts * threads, units, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(units, parts)] * 2,
        output_dtypes=[mx.float32, mx.int32],
    )
    if parts > 1:
        # The first of equals is the lowest id, since parts are in order.
        best = mx.argmax(score, axis=1, keepdims=True)
        token = mx.take_along_axis(token, best, axis=1)
    return token.reshape(len(group.rows), places)


def _cuts(values: mx.array, tops: mx.array, group: Group) -> tuple[mx.array, mx.array]:
    """[b * N] uint32 keys and int32 ids of the last token that each row keeps."""
    _, places, vocabulary = values.shape
    units = len(group.rows) * places
    threads = min(_CUT_THREADS, _warps(vocabulary))
    kernel = _runtime.build(
        "sample_cut",
        _FILE,
        ["cut"],
        ["logits", "tops", "index", "top_p", "top_k", "lowest"],
        ["cut_key", "cut_token"],
    )
    key, token = kernel(
        inputs=[values, tops, group.index, group.top_p, group.top_k, group.lowest],
        template=[
            *(("V", vocabulary), ("N", places), ("THREADS", threads)),
            *(("BY_MASS", group.by_mass), ("ID_BITS", vocabulary.bit_length())),
        ],
        grid=(units * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(units,)] * 2,
        output_dtypes=[mx.uint32, mx.int32],
    )
    return key, token


def _warps(vocabulary: int) -> int:
    """Threads for one token each, in whole simdgroups."""
    return -(-vocabulary // 32) * 32
