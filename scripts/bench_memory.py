"""Memory against the batch: K/V bytes and peak memory at B = 1, 2, 4, 8, 16, 32, and a line through
them.

Every batch is B prompts of the same length with the same number of new tokens, through an engine
of its own. K/V is what the slots of target and draft hold at most, exactly; the peak is MLX's,
less what the models hold, so it has the activations of a prefill pass in it too.

    python scripts/bench_memory.py --prompt-tokens 512 --max-tokens 64
    python scripts/bench_memory.py --model mlx-community/Qwen3-4B-4bit --batch 1 2 4 8
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from typing import Any

from bench_support.results import add_save, finish, table  # loads the fast BLAS, before mlx

import mlx.core as mx  # isort: skip
import numpy as np

import mlx_spec
from mlx_spec.batching.engine import Engine
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class Row:
    """One batch size: rows, and bytes of K/V and at the peak beside the models."""

    batch: int
    kv: int
    peak: int


@dataclass(frozen=True)
class Line:
    """The least-squares line ``bytes = base + per_row * B``, and how much of them it explains."""

    base: float
    per_row: float
    r_squared: float

    @classmethod
    def through(cls, batches: Seq[int], values: Seq[int]) -> Line:
        """Fit it; needs two different batch sizes."""
        x, y = np.array(batches, float), np.array(values, float)
        per_row, base = np.polyfit(x, y, 1)
        spread = float(((y - y.mean()) ** 2).sum())
        left = float(((y - base - per_row * x) ** 2).sum())
        return cls(float(base), float(per_row), 1.0 - left / spread if spread else 1.0)


def measure(model: Any, draft: Any, batch: int, prompt_tokens: int, max_tokens: int) -> Row:
    """Run one batch; the prompts differ, so that nothing is shared."""
    gc.collect()
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    engine = Engine(
        model,
        None,
        draft_model=draft,
        batching=BatchingConfig(batch_size=batch, prefill_step_size=256),
        speculation=SpeculationConfig(num_draft_tokens=4, adaptive=False),
    )
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    for row in range(batch):
        prompt = [(7 * place + 13 * row) % 60 + 1 for place in range(prompt_tokens)]
        engine.submit(Sequence(prompt, sampling, index=row))
    kv = 0
    while engine.busy:
        engine.step(hurry=True)
        kv = max(kv, engine.kv_usage().bytes_held)
    return Row(batch, kv, mx.get_peak_memory() - held)


def report(rows: Seq[Row]) -> dict[str, Any]:
    """A table, and the two lines in another."""
    table(
        "Bytes by rows",
        ["B", "K/V MB", "K/V MB a row", "peak beside the models MB"],
        [
            [r.batch, f"{r.kv / 1e6:.2f}", f"{r.kv / r.batch / 1e6:.3f}", f"{r.peak / 1e6:.1f}"]
            for r in rows
        ],
    )
    lines = {}
    for name in ("kv", "peak"):
        line = Line.through([row.batch for row in rows], [getattr(row, name) for row in rows])
        lines[name] = asdict(line)
    table(
        "A line through them",
        ["", "beside all rows MB", "a row MB", "R²"],
        [
            [name, f"{o['base'] / 1e6:.2f}", f"{o['per_row'] / 1e6:.3f}", f"{o['r_squared']:.6f}"]
            for name, o in lines.items()
        ],
    )
    return {"rows": [asdict(row) for row in rows], "lines": lines}


def main() -> None:
    """Measure every batch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--draft-model", default=None, help="default: demo-draft for demo")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=64)
    add_save(parser)
    options = parser.parse_args()
    if len(set(options.batch)) < 2:
        parser.error("a line needs two different batch sizes")
    name = options.draft_model or ("demo-draft" if options.model == "demo" else None)
    model, _ = mlx_spec.load(options.model)
    draft = None if name is None else mlx_spec.load(name)[0]
    # Once before all: what stays for good is no row's.
    measure(model, draft, 1, options.prompt_tokens, options.max_tokens)
    rows = [
        measure(model, draft, batch, options.prompt_tokens, options.max_tokens)
        for batch in options.batch
    ]
    finish(options, report(rows))


if __name__ == "__main__":
    main()
