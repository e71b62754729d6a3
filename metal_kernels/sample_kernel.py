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
# Not 1,024: a kernel of 64-bit sums may need more registers than so many threads leave it.
_CUT_THREADS = 512
_RACE_THREADS = 256
_SPLIT = 4096  # tokens of a threadgroup of the race


def kernel_race(
    values: mx.array, largest: mx.array | None, positions: mx.array, group: Group
) -> mx.array:
    """[b, N] tokens of a group's rows of [B, N, V], of the winner in each."""
    _, places, vocabulary = values.shape
    units = len(group.rows) * places
    tops = (values.max(axis=-1) if largest is None else largest).astype(mx.float32)
    cut = _cuts(values, tops, positions, group) if group.filters else (unread(),) * 3
    special, specials = _special(group)
    parts = -(-vocabulary // _SPLIT)
    threads = min(_RACE_THREADS, _warps(vocabulary))
    kernel = _runtime.build(
        "sample_race",
        _FILE,
        ["race"],
        [
            *("logits", "tops", "positions", "index", "seeds", "inverse_temperature"),
            *("cut_key", "cut_token", "floor_key", "special", "table"),
        ],
        ["score", "token"],
    )
    score, token = kernel(
        inputs=[
            *(values, tops, positions.astype(mx.int32), group.index),
            *(group.seeds, group.inverse_temperature, *cut, special, gumbel_table()),
        ],
        template=[
            *(("V", vocabulary), ("N", places), ("FILTERS", group.filters)),
            *(("THREADS", threads), ("SPLIT", _SPLIT), ("PARTS", parts)),
            *(("EXCLUDES", specials > 0), ("SPECIALS", specials)),
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


def _cuts(
    values: mx.array, tops: mx.array, positions: mx.array, group: Group
) -> tuple[mx.array, mx.array, mx.array]:
    """Of each of b * N rows: uint32 key and int32 id of the last token kept; uint32, keys below it
    are excluded."""
    _, places, vocabulary = values.shape
    units = len(group.rows) * places
    threads = min(_CUT_THREADS, _warps(vocabulary))
    xtc, (special, specials) = group.exclusion, _special(group)
    kernel = _runtime.build(
        "sample_cut",
        _FILE,
        ["cut"],
        [
            *("logits", "tops", "index", "top_p", "top_k", "lowest", "fewest"),
            *("positions", "seeds", "chance", "share", "then_k", "special"),
        ],
        ["cut_key", "cut_token", "floor_key"],
    )
    more = (unread(),) * 3 if xtc is None else (xtc.chance, xtc.share, xtc.top_k)
    key, token, floor = kernel(
        inputs=[
            *(values, tops, group.index, group.top_p, group.top_k, group.lowest, group.least),
            *(positions.astype(mx.int32), group.seeds, *more, special),
        ],
        template=[
            *(("V", vocabulary), ("N", places), ("THREADS", threads), ("SPECIALS", specials)),
            *(("BY_MASS", group.by_mass), ("ID_BITS", vocabulary.bit_length())),
            *(("BY_LEAST", group.by_least), ("EXCLUDES", xtc is not None)),
            ("THEN_BY_COUNT", xtc is not None and xtc.by_count),
        ],
        grid=(units * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(units,)] * 3,
        output_dtypes=[mx.uint32, mx.int32, mx.uint32],
    )
    return key, token, floor


def _special(group: Group) -> tuple[mx.array, int]:
    """Tokens that are never excluded, and how many a row."""
    xtc = group.exclusion if group.filters else None
    return (unread(), 0) if xtc is None else (xtc.special, xtc.special.shape[1])


def _warps(vocabulary: int) -> int:
    """Threads for one token each, in whole simdgroups."""
    return -(-vocabulary // 32) * 32
