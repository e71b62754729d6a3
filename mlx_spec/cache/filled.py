"""``filled_packing``: a packed pass of which the host knows how many tokens it has, and not whose.

How many guesses are verified in all is decided before anything is drafted; who gets them, on the
device, once it is known how likely each is to stand. So what ``TokenPacking.of`` works out of
numbers is worked out of an array here, and all that the host knows is the size of the pass::

    counts  3 1 2     ends 3 4 6     token 0 1 2 3 4 5     row     0 0 0 1 2 2   ends that it is not
                                                           column  0 1 2 0 0 1   before

Queries are asked as one rectangle, since which rows are alike is not known either.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_spec.cache.packing import QueryRun, TokenPacking


def filled_packing(counts: mx.array, width: int, own: int, tokens: int) -> TokenPacking:
    """Of rows that bring so many tokens each, as the device knows.

    Args:
        counts: [B] int32, at least 1 and at most ``width``; they add up to ``own``.
        width: of the rectangle.
        own: tokens that there are.
        tokens: of the pass; those beyond are copies of the first.
    """
    # What is told wrongly must cost a guess and no memory: nothing outside of arrays is read.
    batch = counts.shape[0]
    ends = mx.cumsum(counts)
    first = ends - counts
    order = mx.arange(own, dtype=mx.int32)
    rows = mx.minimum((ends <= order[:, None]).sum(axis=1), batch - 1).astype(mx.int32)
    places = mx.minimum(rows * width + order - first[rows], batch * width - 1)
    if tokens > own:
        rows, places = (mx.pad(each, (0, tokens - own)) for each in (rows, places))
    columns = mx.arange(width, dtype=mx.int32)
    index = mx.minimum(first[:, None] + mx.minimum(columns, counts[:, None] - 1), own - 1)
    whole = QueryRun(0, batch, width, index)
    return TokenPacking(places, index, (), (), (whole,), places, rows)
