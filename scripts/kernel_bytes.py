"""Bytes and launches of each kernel against MLX's composition, for one decoding step of a model.

Pure arithmetic over shapes; no mlx and no Metal. ``tests/test_kernel_bytes.py`` holds the figures
of our kernels against what the simulator counts at a small shape; MLX's are read from its source
(0.32.4). ``docs/kernels.md`` shows the tables that this prints::

    python scripts/kernel_bytes.py
    python scripts/kernel_bytes.py --batch 1 --tokens 5 --cached 8192
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from metal_kernels.attention_plan import AttentionConfig, make_plan

BANDWIDTHS = (100, 200, 400, 800)  # GB/s: from a base M chip to an Ultra


@dataclass(frozen=True)
class Model:
    """What of a model matters here."""

    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    head_norms: bool
    vocabulary: int


QWEN = Model("Qwen3-0.6B", 28, 1024, 16, 8, 128, True, 151_936)
LLAMA = Model("Llama-8B", 32, 4096, 32, 8, 128, False, 128_256)
SPLIT = 4096  # tokens of a threadgroup that samples


@dataclass(frozen=True)
class Step:
    """One decoding step.

    Attributes:
        model: its shape.
        batch, tokens: rows, and new tokens of each.
        cached: keys of each row, the new ones included; the slots hold no more.
        itemsize: bytes of an element.
    """

    model: Model
    batch: int
    tokens: int
    cached: int
    itemsize: int = 2

    @property
    def queries(self) -> int:
        """Bytes of the queries of a layer, and of attention's output."""
        model = self.model
        return self.batch * self.tokens * model.q_heads * model.head_dim * self.itemsize

    @property
    def keys(self) -> int:
        """Bytes of the new keys of a layer."""
        model = self.model
        return self.batch * self.tokens * model.kv_heads * model.head_dim * self.itemsize

    @property
    def cache(self) -> int:
        """Bytes of the keys and values of a layer that its rows see."""
        model = self.model
        return 2 * self.batch * self.cached * model.kv_heads * model.head_dim * self.itemsize

    @property
    def stream(self) -> int:
        """Bytes of the residual stream."""
        return self.batch * self.tokens * self.model.hidden * self.itemsize


@dataclass(frozen=True)
class Cost:
    """Of one layer.

    Attributes:
        moved: bytes to and from memory, each array once a launch.
        launches: kernels started.
        loaded: bytes of keys and values that threadgroups ask for, shared caches hit or not.
    """

    moved: int
    launches: int
    loaded: int = 0


@dataclass(frozen=True)
class Comparison:
    """One operation: ours, MLX's composition, and the least that any kernel could move.

    Attributes:
        times: how often a step has it; None for once a layer.
    """

    name: str
    ours: Cost
    mlx: Cost
    least: int
    times: int | None = None


def add_norm(step: Step) -> Comparison:
    """Residual add and RMSNorm: two arrays in, two out, and the weight."""
    weight = step.model.hidden * step.itemsize
    ours = 4 * step.stream + weight
    return Comparison("add + RMSNorm", Cost(ours, 1), Cost(ours + step.stream, 2), ours)


def norm_rope(step: Step) -> Comparison:
    """Norms and rotations of queries and keys: MLX makes a pass for each."""
    arrays = step.queries + step.keys
    extra = 2 * step.model.head_dim * step.itemsize + 4 * step.batch
    ours = 2 * arrays + extra
    return Comparison("q/k norm + rope", Cost(ours, 1), Cost(ours + 2 * arrays, 4), ours)


def attention(step: Step, config: AttentionConfig | None = None) -> Comparison:
    """Attention over slots; MLX's reads a mask, copied for all heads, and turns its output."""
    least = step.cache + 2 * step.queries + 4 * step.batch
    ours = _our_attention(step, least, config or AttentionConfig())
    return Comparison("attention", ours, _mlx_attention(step), least)


def _our_attention(step: Step, least: int, config: AttentionConfig) -> Cost:
    model = step.model
    plan = make_plan(
        config,
        groups=step.batch * model.kv_heads,
        queries=step.tokens * model.q_heads // model.kv_heads,
        capacity=step.cached,
        head_dim=model.head_dim,
        itemsize=step.itemsize,
    )
    outputs = step.batch * step.tokens * model.q_heads
    partial = outputs * plan.splits * (model.head_dim + 2) * 4 if plan.splits > 1 else 0
    return Cost(least + 2 * partial, 1 + (plan.splits > 1), step.cache * plan.parts)


def _mlx_attention(step: Step) -> Cost:
    """``sdpa_vector``: every query and query head reads all keys it sees, by itself."""
    model = step.model
    outputs = step.batch * step.tokens * model.q_heads
    shared = model.q_heads // model.kv_heads
    masked = step.batch > 1  # rows differ in length
    moved = step.cache + 2 * step.queries
    # A byte for each query and key; read once as it is made, once as copied for every head.
    moved += step.batch * step.tokens * step.cached * (1 + 2 * model.q_heads) if masked else 0
    turned = step.tokens > 1
    moved += 2 * step.queries if turned else 0  # the output, transposed back to tokens
    launches = 1 + masked + turned
    loaded = step.cache * shared * step.tokens
    if step.tokens * shared > 32:  # unfused: scores written, read and written by the softmax, read
        scores = outputs * step.cached * step.itemsize
        return Cost(moved + 4 * scores, launches + 2, loaded)
    if shared > 1 and step.cached >= 4096:  # two passes
        blocks = 64 if shared * step.tokens >= 4 else 32  # of all chips but Max and Ultra
        partial = outputs * blocks * (model.head_dim * step.itemsize + 8)
        return Cost(moved + 2 * partial, launches + 1, loaded)
    return Cost(moved, launches, loaded)


def norm_alone(step: Step) -> Comparison:
    """The norm that no add precedes in its layer: there is nothing to save."""
    moved = 2 * step.stream + step.model.hidden * step.itemsize
    return Comparison("RMSNorm alone", Cost(moved, 1), Cost(moved, 1), moved)


def rope_alone(step: Step) -> Comparison:
    """Rotations of queries and of keys: there is nothing to save."""
    moved = 2 * (step.queries + step.keys) + 4 * step.batch
    return Comparison("rope alone", Cost(moved, 2), Cost(moved, 2), moved)


def sample(step: Step) -> Comparison:
    """Sampling without filters: MLX's is ``mx.random.categorical``, compiled as mlx-lm does."""
    units = step.batch * step.tokens
    logits = units * step.model.vocabulary * step.itemsize
    parts = -(-step.model.vocabulary // SPLIT)
    # MLX's maximum before the kernel, and where there are several parts its argmax after it.
    partial = 8 * units * parts
    merged = partial + 8 * units if parts > 1 else 0
    ours = Cost(2 * logits + partial + merged, 2 + 2 * (parts > 1))
    # Random bits written and read, sums of noise and logits written and read.
    mlx = Cost(logits + 16 * units * step.model.vocabulary, 3)
    return Comparison("sampling at T > 0", ours, mlx, logits + 4 * units, times=1)


def comparisons(step: Step) -> list[Comparison]:
    """The operations that a model's layers have."""
    turn = norm_rope if step.model.head_norms else rope_alone
    kinds: list[Callable[[Step], Comparison]] = [attention, turn, add_norm, norm_alone, sample]
    return [kind(step) for kind in kinds]


def table(step: Step) -> str:
    """A Markdown table of one step over all layers."""
    layers = step.model.layers
    head = [
        f"{step.model.name}, {step.batch} rows x {step.tokens} new tokens, "
        f"{step.cached:,} keys each, {step.itemsize}-byte elements, {layers} layers:",
        "",
        "| a step | ours | `mx.fast` composition | least | ours / least | launches | saved | at "
        + " / ".join(map(str, BANDWIDTHS))
        + " GB/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [_line(one, layers) for one in comparisons(step)])


def _line(one: Comparison, layers: int) -> str:
    layers = one.times or layers
    saved = (one.mlx.moved - one.ours.moved) * layers
    times = " / ".join(f"{saved / (speed * 1e3):.0f}" for speed in BANDWIDTHS)
    return (
        f"| {one.name} | {_mega(one.ours.moved * layers)} | {_mega(one.mlx.moved * layers)} "
        f"| {_mega(one.least * layers)} | {one.ours.moved / one.least:.3f} "
        f"| {one.ours.launches * layers} against {one.mlx.launches * layers} "
        f"| {_mega(saved)} | {times} us |"
    )


def _mega(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def traffic(step: Step) -> str:
    """How often keys and values are asked for, one sentence."""
    one = attention(step)
    return (
        f"{step.model.name}: threadgroups ask for {_mega(one.ours.loaded)} of keys and values a "
        f"layer (ours) against {_mega(one.mlx.loaded)} (`sdpa_vector`)."
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Bytes and launches of the Metal kernels.")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=5, help="new tokens of a row, K + 1")
    parser.add_argument("--cached", type=int, default=1024)
    options = parser.parse_args()
    for model in (QWEN, LLAMA):
        step = Step(model, options.batch, options.tokens, options.cached)
        print(table(step), traffic(step), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
