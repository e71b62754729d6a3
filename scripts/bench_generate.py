"""Generation speed: mlx-lm plain, speculative and batched against ours, same prompts, same pair.

The embedded pair's target is widened first (``bench_support.pair``). The methods run interleaved,
round after round in one process; the table shows medians, and every comparison is a median of
ratios within a round, since these machines are shared. The last line is JSON.

    python scripts/bench_generate.py --batch 1 2 4 8 16 --temp 0 0.8 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench_support.pair import Pair, load_pair  # loads the fast BLAS, before mlx
from bench_support.rounds import machine

import mlx.core as mx  # isort: skip
from mlx_lm.generate import batch_generate as mlx_lm_batch
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.sample_utils import make_sampler

import mlx_spec
from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig


@dataclass
class Series:
    """The runs of one method in one setting."""

    tokens_per_second: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median throughput, in tokens per second of the whole call."""
        return statistics.median(self.tokens_per_second)


@dataclass(frozen=True)
class Bench:
    """Models and settings of one invocation."""

    pair: Pair
    max_tokens: int
    draft_tokens: int

    def encoded(self, batch: int) -> list[list[int]]:
        """Twice as many prompts as rows, at least four: rows that end are filled again.

        That is how a batch lives. In a closed batch the last row decides, and the fewer prompts,
        the less their texts say about acceptance.
        """
        return self.pair.prompts(max(4, 2 * batch))

    def mlx_plain(self, prompts: list[list[int]], temp: float) -> tuple[int, dict[str, Any]]:
        """mlx-lm's loop, one prompt after the other."""
        tokens = 0
        for prompt in prompts:
            steps = generate_step(
                mx.array(prompt),
                self.pair.model,
                max_tokens=self.max_tokens,
                sampler=make_sampler(temp),
            )
            tokens += sum(1 for _ in steps)
        return tokens, {}

    def mlx_speculative(self, length: int) -> Callable[..., tuple[int, dict[str, Any]]]:
        """mlx-lm's speculative loop at a fixed draft length, one prompt after the other."""

        def run(prompts: list[list[int]], temp: float) -> tuple[int, dict[str, Any]]:
            drafted: list[bool] = []
            for prompt in prompts:
                steps = speculative_generate_step(
                    mx.array(prompt),
                    self.pair.model,
                    self.pair.draft,
                    num_draft_tokens=length,
                    max_tokens=self.max_tokens,
                    sampler=make_sampler(temp),
                )
                drafted += [from_draft for _, _, from_draft in steps]
            return len(drafted), {"from_draft": round(sum(drafted) / len(drafted), 3)}

        return run

    def mlx_batch(self, batch: int) -> Callable[..., tuple[int, dict[str, Any]]]:
        """mlx-lm's batch_generate with ``batch`` rows."""

        def run(prompts: list[list[int]], temp: float) -> tuple[int, dict[str, Any]]:
            response = mlx_lm_batch(
                self.pair.model,
                self.pair.tokenizer,
                prompts,
                max_tokens=self.max_tokens,
                return_token_ids=True,
                sampler=make_sampler(temp),
                completion_batch_size=batch,
                prefill_batch_size=min(8, batch),
            )
            assert response.token_ids is not None
            return sum(len(ids) for ids in response.token_ids), {}

        return run

    def ours(self, batch: int, speculate: bool) -> Callable[..., tuple[int, dict[str, Any]]]:
        """batch_generate, plain or speculating with an adaptive draft length."""

        def run(prompts: list[list[int]], temp: float) -> tuple[int, dict[str, Any]]:
            made = mlx_spec.batch_generate(
                self.pair.model,
                self.pair.tokenizer,
                prompts,
                draft_model=self.pair.draft if speculate else None,
                sampling=SamplingParams(
                    max_tokens=self.max_tokens, temperature=temp, seed=1, ignore_eos=True
                ),
                speculation=SpeculationConfig(num_draft_tokens=self.draft_tokens),
                batching=BatchingConfig(batch_size=batch),
            )
            stats = made.stats
            notes = {
                "acceptance": round(stats.acceptance_rate, 3),
                "mean_acceptance_length": round(stats.mean_acceptance_length, 2),
                "draft_lengths": dict(stats.draft_lengths),
            }
            return stats.generation_tokens, notes if speculate else {}

        return run

    def methods(self, batch: int, lengths: list[int]) -> dict[str, Callable[..., Any]]:
        """What is compared at this batch size."""
        methods: dict[str, Callable[..., Any]] = {}
        if batch == 1:
            methods["mlx-lm plain"] = self.mlx_plain
            for length in lengths:
                methods[f"mlx-lm speculative K={length}"] = self.mlx_speculative(length)
        methods["mlx-lm batch_generate"] = self.mlx_batch(batch)
        methods["ours plain"] = self.ours(batch, False)
        methods["ours speculative"] = self.ours(batch, True)
        return methods


def measure(bench: Bench, batch: int, temp: float, rounds: int, lengths: list[int]) -> Any:
    """Run every method once a round, in turn, after one round that does not count."""
    prompts = bench.encoded(batch)
    methods = bench.methods(batch, lengths)
    results = {name: Series() for name in methods}
    for turn in range(rounds + 1):
        mx.random.seed(turn)
        for name, method in methods.items():
            mx.clear_cache()
            mx.reset_peak_memory()
            started = time.perf_counter()
            tokens, notes = method(prompts, temp)
            seconds = time.perf_counter() - started
            if turn:
                series = results[name]
                series.tokens_per_second.append(tokens / seconds)
                series.peak_bytes.append(mx.get_peak_memory())
                series.notes = notes
    return results


def ratio(results: dict[str, Series], ours: str, theirs: str) -> float:
    """Median over rounds of ours / theirs."""
    pairs = zip(results[ours].tokens_per_second, results[theirs].tokens_per_second, strict=True)
    return statistics.median(a / b for a, b in pairs)


def report(results: dict[str, Series], batch: int, temp: float) -> dict[str, Any]:
    """Print one setting's table; return it as a record."""
    print(f"\n### B={batch}, T={temp}\n")
    print("| method | tok/s | min-max | peak MB | notes |\n|---|---|---|---|---|")
    for name, series in results.items():
        speeds = series.tokens_per_second
        print(
            f"| {name} | {series.median:.1f} | {min(speeds):.1f}-{max(speeds):.1f} "
            f"| {max(series.peak_bytes) / 1e6:.0f} | {series.notes or ''} |"
        )
    ratios = {
        "ours plain / mlx-lm batch": ratio(results, "ours plain", "mlx-lm batch_generate"),
        "ours speculative / ours plain": ratio(results, "ours speculative", "ours plain"),
    }
    for name in results:
        if name.startswith("mlx-lm speculative"):
            ratios[f"ours speculative / {name}"] = ratio(results, "ours speculative", name)
    print("\n" + ", ".join(f"{name}: {value:.2f}" for name, value in ratios.items()), flush=True)
    return {
        "batch": batch,
        "temp": temp,
        "tokens_per_second": {n: round(s.median, 2) for n, s in results.items()},
        "peak_mb": {n: round(max(s.peak_bytes) / 1e6) for n, s in results.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "notes": {n: s.notes for n, s in results.items() if s.notes},
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--temp", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=32768, help="MLP width; 0 leaves the target")
    parser.add_argument("--num-draft-tokens", type=int, default=8, help="our maximum")
    parser.add_argument("--mlx-lm-draft-tokens", type=int, nargs="+", default=[3, 6])
    return parser.parse_args()


def main() -> None:
    """Measure all settings and print tables and one JSON line."""
    options = parse()
    bench = Bench(load_pair(options.width), options.max_tokens, options.num_draft_tokens)
    records = []
    for temp in options.temp:
        for batch in options.batch:
            results = measure(bench, batch, temp, options.rounds, options.mlx_lm_draft_tokens)
            records.append(report(results, batch, temp))
    print(json.dumps({"machine": machine(), "options": vars(options), "results": records}))


if __name__ == "__main__":
    main()
