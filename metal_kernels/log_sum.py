"""``log_sum``: the logarithm of the sum of exponentials, which log-probabilities are less.

MLX's CPU build takes the exponentials of a vocabulary one by one, 12 ns each; there they are made
of a polynomial and a float's exponent instead, in operations over many numbers at once::

    e**x = 2**t, t = x log2(e) <= 0      whole = ceil(t), g = t - whole + 1 in (0, 1]
         = 2**g * 2**(whole - 1)         2**g by a polynomial, within 2e-7 of itself
"""

from __future__ import annotations

import math

import mlx.core as mx

# 2**g in [0, 1], highest power first.
_EXP2 = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)
_LEAST = -125.0  # powers of two below count as this one: 1e-38 of the largest
_LINES = 32  # sums over lines come first: quicker on a CPU, and truer


def log_sum(values: mx.array) -> mx.array:
    """[..., 1] float32 of float32 [..., V]."""
    if mx.default_device() != mx.Device(mx.cpu):
        return mx.logsumexp(values, axis=-1, keepdims=True)
    lines = _lines(values)
    top = lines.max(axis=-2).max(axis=-1)[..., None]
    shares = _powers(mx.maximum((lines - top[..., None]) * math.log2(math.e), _LEAST))
    # Of 64 bits, which this device has: many small ones beside a large one would each be rounded.
    total = shares.sum(axis=-2).astype(mx.float64).sum(axis=-1, keepdims=True)
    return top + mx.log(total.astype(mx.float32))


def _lines(values: mx.array) -> mx.array:
    """[..., 32, ceil(V / 32)], padded with what adds nothing."""
    missing = -values.shape[-1] % _LINES
    if missing:
        pads = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
        values = mx.pad(values, pads, constant_values=-mx.inf)
    return mx.unflatten(values, -1, (_LINES, -1))


def _powers(exponents: mx.array) -> mx.array:
    """2**t for t in -125..0."""
    whole = exponents.astype(mx.int32)
    rest = exponents - whole.astype(mx.float32) + 1.0
    total: mx.array = rest * _EXP2[0] + _EXP2[1]
    for coefficient in _EXP2[2:]:
        total = total * rest + coefficient
    return (total.view(mx.int32) + ((whole - 1) << 23)).view(mx.float32)
