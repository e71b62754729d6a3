"""What sampling costs at a real vocabulary: time, Python and temporaries a step.

    python scripts/bench_sampler.py
    python scripts/bench_sampler.py --rows 8 --drafts 4 --vocabulary 151936 --dtype bfloat16

One call chooses the tokens of ``drafts + 1`` positions of each row, as a verify pass does. *wall*
is the best and the median of all calls, *cpu* the least processor time of one, which a busy machine
disturbs less; *build* is the Python of one call, part of both; *temporaries* is the peak over the
call, as a multiple of the float32 logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from bench_support.results import add_save, finish, table  # loads the fast BLAS, before mlx

import mlx.core as mx  # isort: skip

from metal_kernels import SampleRows, sample  # isort: skip

KINDS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "T = 0.8": {"temperature": 0.8},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "top-p, top-k": {"temperature": 0.8, "top_p": 0.9, "top_k": 50},
}


def measure(logits: mx.array, positions: mx.array, rows: SampleRows, repeats: int) -> list[float]:
    """Best and median wall, least cpu and build in milliseconds; temporaries over logits."""
    walls, cpus, builds = [], [], []
    mx.eval(sample(logits, positions, rows).tokens)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(sample(logits, positions, rows).tokens)
    temporaries = (mx.get_peak_memory() - before) / (4 * logits.size)
    for _ in range(repeats):
        cpu, start = time.process_time(), time.perf_counter()
        tokens = sample(logits, positions, rows).tokens
        built = time.perf_counter()
        mx.eval(tokens)
        walls.append(time.perf_counter() - start)
        cpus.append(time.process_time() - cpu)
        builds.append(built - start)
    times = (min(walls), statistics.median(walls), min(cpus), min(builds))
    return [*(1e3 * seconds for seconds in times), temporaries]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--drafts", type=int, default=4, help="K: positions are one more")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=30)
    add_save(parser)
    options = parser.parse_args()
    results = {rows: kinds(rows, options) for rows in options.rows}
    finish(options, results)


def kinds(count: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """All kinds of sampling at so many rows."""
    shape = (count, options.drafts + 1, options.vocabulary)
    logits = (3 * mx.random.normal(shape, key=mx.random.key(0))).astype(getattr(mx, options.dtype))
    positions = mx.broadcast_to(mx.arange(100, 101 + options.drafts), shape[:2])
    mx.eval(logits, positions)
    found = {}
    for name, kind in KINDS.items():
        every: dict[str, Any] = {key: [value] * count for key, value in kind.items()}
        rows = SampleRows.of(range(count), **every)
        found[name] = measure(logits, positions, rows, options.repeats)
    table(
        f"{shape[0]} rows x {shape[1]} positions x {shape[2]:,} tokens, {options.dtype}: ms a call",
        ["", "wall, best", "wall, median", "cpu, least", "build", "temporaries / logits"],
        [[name, *(f"{x:.2f}" for x in figures)] for name, figures in found.items()],
    )
    return found


if __name__ == "__main__":
    main()
