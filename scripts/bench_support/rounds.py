"""Methods that run in turn, round after round in one process, and what is made of their figures.

These machines are shared and noisy, so a comparison is a median of ratios within a round.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_spec.bench.rounds import Figures, Series
from mlx_spec.bench.rounds import ratio as ratio  # for those who take it from here

import mlx.core as mx  # isort: skip

Method = Callable[[], Figures]


def interleave(methods: Mapping[str, Method], rounds: int) -> dict[str, Series]:
    """Run every method once a round, in turn, after one round that does not count."""
    figures: dict[str, list[Figures]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, method in methods.items():
            mx.clear_cache()
            result = method()
            if turn:
                figures[name].append(result)
    return {name: Series(each) for name, each in figures.items()}


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def machine() -> dict[str, str]:
    """What this ran on."""
    return {"system": platform.platform(), "cpu": platform.processor(), "mlx": mx.__version__}
