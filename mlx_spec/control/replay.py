"""``replay``: what steps bring on average that pick their guesses once they are seen.

A plan by averages misses what picking gains: where a token is dear, one row alone verifies a guess
in the few steps in which it is sure, which is no number of guesses that a plan could name. So rows
as they were lately are played again, as many at a time as there are now, by the rules that the
step itself follows::

    rows of late   .9 .8 | .1 | .3 .2 | .95 .9     one at a time:   2 0 0 2 guesses
    (reaching)                                      two at a time:   2 | 2
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from itertools import accumulate, chain

from mlx_spec.control.allocation import Prices, StepBudget
from mlx_spec.control.confidence import Usual

GROUPS = 48  # steps that are played again at most


def replay(usual: Usual, rows: int, prices: Prices) -> StepBudget:
    """An average step of so many rows, at the value of time that it brings itself.

    Args:
        usual: rows of late, as far as drafts may go.
        rows: of a step.
        prices: of steps of a model that packs.
    """
    groups = list(_groups(usual.reaching, rows))
    speed = rows / prices.verify[0]
    found = _played(groups, usual.following, prices, speed)
    return _played(groups, usual.following, prices, max(speed, found.speed))


def gain(reached: Seq[float], following: float, slope: float) -> float:
    """Tokens that another guess of each row brings, beyond what its verification is worth.

    Args:
        reached: how likely the last guess of each row stands, with all before it.
        following: how likely the next one does, if they do.
        slope: tokens that the time of verifying one more is worth.
    """
    return sum([more for reach in reached if (more := reach * following - slope) > 0.0])


def slope_of(prices: Prices, speed: float) -> float:
    """Tokens that the time of verifying one guess more is worth, on average over the pass."""
    verify = prices.verify
    return speed * (verify[-1] - verify[0]) / (len(verify) - 1)


def _groups(reaching: Seq[Seq[float]], rows: int) -> Iterator[Seq[Seq[float]]]:
    """Rows of a step each; those of late stand for several where there are more rows than these."""
    known = len(reaching)
    several = [*reaching] * (2 + rows // known)
    for number in range(min(GROUPS, max(1, known // rows))):
        begin = -(number + 1) * rows % known  # the last ones first
        yield several[begin : begin + rows]


def _played(
    groups: Seq[Seq[Seq[float]]], following: Seq[float], prices: Prices, speed: float
) -> StepBudget:
    verify, draft, slope = prices.verify, prices.draft, slope_of(prices, speed)
    tokens = seconds = 0.0
    passes = guesses = 0
    for group in groups:
        made = 1
        while made + 1 < len(draft):
            reached = [row[made - 1] for row in group]
            if gain(reached, following[made], slope) <= speed * (draft[made + 1] - draft[made]):
                break
            made += 1
        pool = sorted(chain.from_iterable([row[:made] for row in group]), reverse=True)
        sums = list(accumulate(pool, initial=float(len(group))))
        values = [one - speed * spent for one, spent in zip(sums, verify, strict=False)]
        best = values.index(max(values))
        tokens += sums[best]
        seconds += verify[best] + draft[made]
        passes += made
        guesses += best
    count = len(groups)
    return StepBudget(-(-passes // count), -(-guesses // count), tokens / count, seconds / count)
