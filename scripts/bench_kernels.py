"""On a Mac: each Metal kernel against MLX's composition at two models' shapes. For developers.

Both run the same inputs, interleaved round by round; a round is many calls in one evaluation, over
several sets of inputs in turn, so that nothing stays in the caches that would not in a model. The
ratio of a shape is the median over the rounds. Nothing depends on it: what a model runs is decided
by shorter trials of its own shapes on the user's machine (``mlx-spec doctor --kernels``).

    python scripts/bench_kernels.py                     # show
    python scripts/bench_kernels.py --json results.json # and keep, with machine and versions

Without Metal there is nothing to measure: it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metal_kernels
from metal_kernels.trials.judge import WINNING_RATIO, KernelTimes
from metal_kernels.trials.machine import interleaved, seconds_of
from metal_kernels.trials.pairs import PAIRS
from metal_kernels.trials.site import KernelPoint, KernelSite
from mlx_spec.model.kernel_choice import machine_name

SETS = 4  # of inputs, so that caches do not hold them


@dataclass(frozen=True)
class BenchModel:
    """What of a model the kernels see."""

    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int

    def sites(self) -> Iterator[KernelSite]:
        """In the type that models decode in."""
        kind = "bfloat16"
        heads = {"q_heads": self.q_heads, "kv_heads": self.kv_heads}
        yield KernelSite("rms_norm", kind, self.hidden, weight=kind)
        yield KernelSite("add_rms_norm", kind, self.hidden, weight=kind)
        yield KernelSite("rope", kind, self.head_dim, q_heads=self.q_heads, dims=self.head_dim)
        yield KernelSite("norm_rope", kind, self.head_dim, weight=kind, dims=self.head_dim, **heads)
        yield KernelSite("attention", kind, self.head_dim, **heads)
        yield KernelSite("sample", kind, self.vocabulary)


SMALL = BenchModel(4, 2, 64, 128, 300)
SMALL_POINTS = (KernelPoint(2, 2, 40),)
QWEN, LLAMA = BenchModel(16, 8, 128, 1024, 151_936), BenchModel(32, 8, 128, 4096, 128_256)
POINTS = tuple(
    KernelPoint(rows, tokens, keys)
    for rows, keys in ((1, 1024), (1, 8192), (4, 1024), (8, 1024), (8, 4096))
    for tokens in (1, 5)
)


def measure(site: KernelSite, point: KernelPoint, rounds: int, repeats: int) -> KernelTimes:
    """Medians over the rounds."""
    pairs = [PAIRS[site.operation](site, point) for _ in range(SETS)]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    seconds_of(ours, 1), seconds_of(theirs, 1)  # compile, and make the inputs
    return interleaved(ours, theirs, rounds, repeats)


def results(
    models: Sequence[BenchModel], points: Sequence[KernelPoint], rounds: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Print and give every shape's times, and print the worst ratio of each operation."""
    sites = [site for model in models for site in model.sites()]
    for operation in PAIRS:
        worst = 0.0
        for site in (site for site in sites if site.operation == operation):
            for point in points:
                taken = measure(site, point, rounds, repeats)
                where = f"B={point.rows} N={point.tokens} keys {point.keys} {site}"
                us = f"{taken.ours * 1e6:8.1f} us, {taken.ratio:.2f} of MLX's"
                print(f"{operation:13} {where}: {us}", flush=True)
                worst = max(worst, taken.ratio)
                yield {**site.record(), **vars(point), **taken._asdict()}
        verdict = "wins everywhere" if worst <= WINNING_RATIO else "loses somewhere"
        print(f"{operation:13} worst {worst:.3f}: {verdict}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, show, and write if asked; the exit code."""
    parser = argparse.ArgumentParser(description="Metal kernels against MLX's compositions.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=20, help="calls a round, of each input")
    parser.add_argument("--small", action="store_true", help="one tiny shape: does it run?")
    parser.add_argument("--json", type=Path, default=None, help="write the results to this file")
    options = parser.parse_args(arguments)
    if not metal_kernels.available():
        print("bench_kernels: no Metal here, so there is nothing to measure", file=sys.stderr)
        return 1
    models = (SMALL,) if options.small else (QWEN, LLAMA)
    points = SMALL_POINTS if options.small else POINTS
    found = list(results(models, points, options.rounds, options.repeats))
    if options.json is not None:
        record = {"machine": machine_name(), "results": found}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"written for {record['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
