"""On a Mac: each Metal kernel against MLX's composition, and the table that decides the defaults.

Both run the same inputs, interleaved round by round; a round is many calls in one evaluation, over
several sets of inputs in turn, so that nothing stays in the caches that would not in a model. The
ratio of a shape is the median over the rounds, and the ratio of an operation its worst shape: a
kernel becomes a default only if it wins everywhere (``WINNING_RATIO``).

    python scripts/bench_kernels.py           # show
    python scripts/bench_kernels.py --write   # and enter this machine in the table of defaults

Without Metal there is nothing to measure: it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

import metal_kernels
from metal_kernels._runtime import WINNING_RATIO, defaults_path
from metal_kernels.attention_inputs import Lengths

Call = Callable[[], Any]
SETS = 4  # of inputs, so that caches do not hold them


@dataclass(frozen=True)
class Shape:
    """One decoding step's layer.

    Attributes:
        batch, tokens: rows and new tokens of each.
        q_heads, kv_heads, head_dim, hidden: of the model.
        cached: keys of the longest row; the others have a few less.
        vocabulary: of the logits.
    """

    batch: int
    tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    cached: int

    def __str__(self) -> str:
        return (
            f"B={self.batch} N={self.tokens} heads {self.q_heads}/{self.kv_heads}x{self.head_dim} "
            f"keys {self.cached}"
        )


SMALL = (Shape(2, 2, 4, 2, 64, 128, 300, 40),)
SHAPES = tuple(
    Shape(batch, tokens, *model, cached)
    # Qwen3-0.6B, Llama-8B
    for model in ((16, 8, 128, 1024, 151_936), (32, 8, 128, 4096, 128_256))
    for batch, cached in ((1, 1024), (1, 8192), (4, 1024), (8, 1024), (8, 4096))
    for tokens in (1, 5)
)


def normal(*shape: int) -> mx.array:
    """Noise in the type that models decode in."""
    return mx.random.normal(shape).astype(mx.bfloat16)


def norm_pair(shape: Shape) -> tuple[Call, Call]:
    """RMSNorm of the residual stream."""
    x, weight = normal(shape.batch, shape.tokens, shape.hidden), normal(shape.hidden)
    return (
        lambda: metal_kernels.rms_norm.kernel(x, weight),
        lambda: mx.fast.rms_norm(x, weight, 1e-5),
    )


def add_norm_pair(shape: Shape) -> tuple[Call, Call]:
    """Residual add and RMSNorm."""
    x, residual = (normal(shape.batch, shape.tokens, shape.hidden) for _ in range(2))
    weight = normal(shape.hidden)

    def theirs() -> tuple[mx.array, mx.array]:
        total = x + residual
        return total, mx.fast.rms_norm(total, weight, 1e-5)

    return lambda: metal_kernels.add_rms_norm.kernel(x, residual, weight), theirs


def heads(shape: Shape, count: int) -> mx.array:
    """[B, H, N, D] as a projection leaves it: a view of [B, N, H, D]."""
    return normal(shape.batch, shape.tokens, count, shape.head_dim).transpose(0, 2, 1, 3)


def turned(x: mx.array, shape: Shape, offsets: mx.array) -> mx.array:
    """MLX's rotation."""
    return mx.fast.rope(
        x, shape.head_dim, traditional=False, base=10000.0, scale=1.0, offset=offsets
    )


def rope_pair(shape: Shape) -> tuple[Call, Call]:
    """The rotation of the queries."""
    x, offsets = heads(shape, shape.q_heads), mx.arange(shape.batch) * 31
    return (
        lambda: metal_kernels.rope.kernel(x, offsets, dims=shape.head_dim),
        lambda: turned(x, shape, offsets),
    )


def norm_rope_pair(shape: Shape) -> tuple[Call, Call]:
    """Head norms and rotations of queries and keys."""
    arrays = (heads(shape, shape.q_heads), heads(shape, shape.kv_heads))
    weights = (normal(shape.head_dim), normal(shape.head_dim))
    offsets = mx.arange(shape.batch) * 31

    def theirs() -> list[mx.array]:
        normed = [mx.fast.rms_norm(x, w, 1e-5) for x, w in zip(arrays, weights, strict=True)]
        return [turned(x, shape, offsets) for x in normed]

    return (
        lambda: metal_kernels.norm_rope.kernel(*arrays, *weights, offsets, dims=shape.head_dim),
        theirs,
    )


def attention_pair(shape: Shape) -> tuple[Call, Call]:
    """Attention over slots, to the layout that the projection after it reads."""
    q = mx.contiguous(heads(shape, shape.q_heads))
    k, v = (normal(shape.batch, shape.kv_heads, shape.cached, shape.head_dim) for _ in range(2))
    lengths = shape.cached - 3 * mx.arange(shape.batch)
    positions = (lengths - shape.tokens)[:, None, None, None] + mx.arange(shape.tokens)[:, None]
    # One row decodes without a mask, as in the engine.
    mask: Any = mx.arange(shape.cached) <= positions
    if shape.batch == 1:
        mask = "causal" if shape.tokens > 1 else None
    scale = shape.head_dim**-0.5
    mx.eval(q, k, v, lengths, mask if shape.batch > 1 else q)

    def by_token(out: mx.array) -> mx.array:
        return out.transpose(0, 2, 1, 3).reshape(shape.batch, shape.tokens, -1)

    return (
        lambda: by_token(
            metal_kernels.attention.kernel(q, k, v, Lengths(lengths, shape.cached), scale=scale)
        ),
        lambda: by_token(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)),
    )


def sample_pair(shape: Shape) -> tuple[Call, Call]:
    """Tokens of rows that sample, every second of them with a top-p."""
    logits = 3 * normal(shape.batch, shape.tokens, shape.vocabulary)
    positions = mx.broadcast_to(mx.arange(shape.tokens), logits.shape[:2])
    rows = metal_kernels.SampleRows.of(
        range(shape.batch),
        [0.8] * shape.batch,
        [0.9 if row % 2 else 1.0 for row in range(shape.batch)],
    )
    return (
        lambda: metal_kernels.sample.kernel(logits, positions, rows).tokens,
        lambda: metal_kernels.sample.reference(logits, positions, rows).tokens,
    )


PAIRS: dict[str, Callable[[Shape], tuple[Call, Call]]] = {
    "rms_norm": norm_pair,
    "add_rms_norm": add_norm_pair,
    "rope": rope_pair,
    "norm_rope": norm_rope_pair,
    "attention": attention_pair,
    "sample": sample_pair,
}


def seconds(calls: list[Call], repeats: int) -> float:
    """Of one call, on average over ``repeats`` rounds of the sets."""
    begin = time.perf_counter()
    mx.eval([call() for _ in range(repeats) for call in calls])
    return (time.perf_counter() - begin) / (repeats * len(calls))


def measure(operation: str, shape: Shape, rounds: int, repeats: int) -> tuple[float, float]:
    """Median seconds of our kernel over MLX's, and median seconds of ours."""
    pairs = [PAIRS[operation](shape) for _ in range(SETS)]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    seconds(ours, 1), seconds(theirs, 1)  # compile, and make the inputs
    ratios, own = [], []
    for turn in range(rounds):
        order = (ours, theirs) if turn % 2 else (theirs, ours)
        taken = {id(calls): seconds(calls, repeats) for calls in order}
        own.append(taken[id(ours)])
        ratios.append(taken[id(ours)] / taken[id(theirs)])
    return statistics.median(ratios), statistics.median(own)


def results(shapes: tuple[Shape, ...], rounds: int, repeats: int) -> Iterator[tuple[str, float]]:
    """Print every shape's ratio; give the worst of each operation."""
    for operation in PAIRS:
        worst = 0.0
        for shape in shapes:
            ratio, own = measure(operation, shape, rounds, repeats)
            print(f"{operation:13} {shape}: {own * 1e6:8.1f} us, {ratio:.2f} of MLX's", flush=True)
            worst = max(worst, ratio)
        worst = round(worst, 3)
        verdict = "wins" if worst <= WINNING_RATIO else "stays off by default"
        print(f"{operation:13} worst {worst:.3f}: {verdict}", flush=True)
        yield operation, worst


def write(path: Path, device: str, ratios: dict[str, float]) -> None:
    """Put one machine's ratios into the table."""
    table = json.loads(path.read_text(encoding="utf-8"))
    table["devices"][device] = ratios
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure, show, and write if asked; the exit code."""
    parser = argparse.ArgumentParser(description="Metal kernels against MLX's compositions.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=20, help="calls a round, of each input")
    parser.add_argument("--small", action="store_true", help="one tiny shape: does it run?")
    parser.add_argument("--write", action="store_true", help="into the table of defaults")
    parser.add_argument("--table", type=Path, default=None, help="another file than that table")
    options = parser.parse_args(arguments)
    if not metal_kernels.available():
        print("bench_kernels: no Metal here, so there is nothing to measure", file=sys.stderr)
        return 1
    shapes = SMALL if options.small else SHAPES
    ratios = dict(results(shapes, options.rounds, options.repeats))
    if options.write:
        device = str(mx.device_info()["device_name"])
        write(options.table or defaults_path(), device, ratios)
        print(f"written for {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
