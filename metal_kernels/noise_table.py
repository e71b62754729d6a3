"""Gumbel noise by its uniform number's distance to the nearer end of the unit interval: a table.

Logarithms of libraries differ between machines in their last bits. Both implementations of
``sample`` read this instead, which is made once in float64 and rounded to float32.
"""

from __future__ import annotations

import functools
import math

import mlx.core as mx

SEGMENT_BITS = 17  # of a float's mantissa that a row of the table spans: 64 rows an octave
_SEGMENTS = 64
_EXPONENTS = range(-33, 32)  # of distances in units of 2**-32, of two words and a half

# Where a parabola meets the function, within a segment (Chebyshev's nodes), and what turns the
# three values there into its coefficients.
_NODES = tuple((1 + math.cos(math.pi * k / 6)) / 2 for k in (1, 3, 5))


@functools.cache
def gumbel_table() -> mx.array:
    """[2**15, 3] float32: for sign, exponent and six bits of a distance a parabola's coefficients.

    The distance is from 0 where it is positive, else from 1, in units of 2**-32; the parabola is of
    the mantissa's other bits as a whole number.
    """
    rows = [(0.0, 0.0, 0.0)] * 2**15
    for sign in (0, 1):
        for exponent in _EXPONENTS:
            first = (sign * 256 + exponent + 127) * _SEGMENTS
            for segment in range(_SEGMENTS):
                rows[first + segment] = _parabola(sign == 1, exponent - 32, segment)
    # The end itself, which rounding reaches from above.
    rows[0] = (-math.log(65 * math.log(2)), 0.0, 0.0)
    table = mx.array(rows, mx.float32)
    mx.eval(table)
    return table


def _parabola(upper: bool, exponent: int, segment: int) -> tuple[float, float, float]:
    a, b, c = (_noise(upper, math.ldexp(1 + (segment + x) / _SEGMENTS, exponent)) for x in _NODES)
    x, y, z = _NODES
    second = ((c - b) / (z - y) - (b - a) / (y - x)) / (z - x)
    first = (b - a) / (y - x) - second * (x + y)
    value = a - x * (first + second * x)
    return value, math.ldexp(first, -SEGMENT_BITS), math.ldexp(second, -2 * SEGMENT_BITS)


def _noise(upper: bool, distance: float) -> float:
    """``-log(-log(1 - w))``, w so far from 1 (upper) or from 0."""
    return -math.log(-math.log(distance) if upper else -math.log1p(-distance))
