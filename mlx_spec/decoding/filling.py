"""``give``: on the device, guesses are given to the rows that are surest of them.

What the host does for steps that it waits within (``control.surest``, ``control.allocation.fill``),
as a graph: the drafter's words become chances by what they were worth so far, a running product
along each row says how likely a guess stands with all before it, and the likeliest of all rows are
taken. A running product falls, so what is taken of a row is its beginning::

    said  .9 .8 .2     chances  .9 .7 .3     reaching  .90 .63 .19     4 guesses     given  2
          .6 .9 .9              .6 .9 .9               .60 .54 .49     least .54            2

Only who is given a guess depends on what was guessed. With shared noise and greedily that changes
no text; under rejection it would bias it (``drafters.base.Draft.filled`` is never set there).
"""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.control.confidence import Confidence
from mlx_spec.control.filling import Filling

_UNKNOWN, _NOBODYS = -1.0, -2.0  # what is no number, and what may not be given


def give(said: mx.array, filling: Filling) -> mx.array:
    """[B] int32: how many guesses each row is given, the first ones; ``guesses`` in all.

    Args:
        said: [B, K] float32, how probable the drafter thinks each guess.
        filling: what the host knows.
    """
    rows, width = said.shape
    value = reaching(said, filling)
    # Whatever is said, even what is no number: in all there are as many as the host counts with.
    value = mx.where(value >= 0, value, _UNKNOWN)
    own = mx.arange(width) < mx.array(list(filling.most), mx.int32)[:, None]
    value = mx.where(own, value, _NOBODYS)
    least = mx.sort(value.flatten())[rows * width - filling.guesses]
    more = (value > least).sum(axis=1)
    equal = (value == least).sum(axis=1)
    left = filling.guesses - more.sum() - (mx.cumsum(equal) - equal)
    return (more + mx.clip(left, 0, equal)).astype(mx.int32)


def reaching(said: mx.array, filling: Filling) -> mx.array:
    """[B, K] float32: what each guess is worth, by the chance that it stands with all before it."""
    right, tested = (mx.array(list(one)) for one in filling.worth)
    bins, prior, sure = Confidence.BINS, Confidence.PRIOR, Confidence.SURE
    known = mx.where(said >= 0, said, 0.0)
    place = mx.clip((known * bins).astype(mx.int32), 0, bins - 1)
    chance = mx.minimum((right[place] + prior * said) / (tested[place] + prior), sure)
    chance = mx.minimum(mx.array(list(filling.times))[:, None] * chance, sure)
    value = mx.cumprod(chance, axis=1)
    if filling.weights is None:
        return value
    return mx.maximum(mx.array(list(filling.weights))[:, None] * value, 0.0)
