"""The distribution that ``sample`` draws from: of the tokens that a row's filters keep, tempered.

Its cuts are those of the race itself, bit for bit, so that a token which can be drawn has a
probability and one which cannot has none.
"""

from __future__ import annotations

import mlx.core as mx

from metal_kernels.noise import Keys, mix, row_keys
from metal_kernels.sample_reference import kept
from metal_kernels.sample_rows import Group

# Apart from tokens' noise and from what filters toss (``noise``).
UNIFORM_STREAM = 0x51ED270B


def probabilities(logits: mx.array, positions: mx.array, group: Group) -> mx.array:
    """[b, N, V] float32: the distributions of a group's rows.

    Args:
        logits: [b, N, V] of the group's rows alone.
        positions: [b, N] integers, of the tokens that they are for.
        group: the rows, which sample.
    """
    rows, places, vocabulary = logits.shape
    keys = row_keys(group.seeds, positions)
    keys = Keys(keys.one.reshape(-1, 1), keys.two.reshape(-1, 1))
    options = group.spread(places)
    values = kept(logits.reshape(-1, vocabulary), keys, options)
    tempered = mx.softmax(values * options.inverse_temperature, axis=-1, precise=True)
    return tempered.reshape(rows, places, vocabulary)


def uniforms(positions: mx.array, group: Group) -> mx.array:
    """[b, N] float32 in [0, 1), of 24 bits: one for each seed and position, beside all noise."""
    keys = row_keys(group.seeds, positions)
    words = mix(mix(keys.one ^ mx.array(UNIFORM_STREAM, mx.uint32)) + keys.two)
    return (words >> 8).astype(mx.float32) * 2.0**-24
