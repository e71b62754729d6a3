"""Methods that run in turn, round after round in one process, and what is made of their figures.

These machines are shared and noisy, so a comparison is a median of ratios within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx_spec.model  # noqa: F401  (the fast BLAS is loaded before mlx)

import mlx.core as mx  # isort: skip

from mlx_spec.bench.rounds import Figures as Figures
from mlx_spec.bench.rounds import Series as Series
from mlx_spec.bench.rounds import ratio as ratio  # for those who take it from here

Method = Callable[[], Figures]


def interleave(
    methods: Mapping[str, Method], rounds: int, *, warm: bool = False
) -> dict[str, Series]:
    """Run every method once a round, in turn, after one round that does not count; ``warm``: that
    one was run already."""
    figures: dict[str, list[Figures]] = {name: [] for name in methods}
    for turn in range(int(warm), rounds + 1):
        for name, method in methods.items():
            mx.clear_cache()
            result = method()
            if turn:
                figures[name].append(result)
    return {name: Series(each) for name, each in figures.items()}
