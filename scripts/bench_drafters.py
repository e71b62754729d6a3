"""Every way to draft against plain decoding, on a real model and real questions, by category.

Questions come from a file of JSON lines with ``category`` and ``turns`` (or ``question``), as
Spec-Bench has them. For each batch size and category the methods run in turn on the same prompts,
the tokens are compared, and ratios are taken within a category. The last line is JSON.

    python scripts/bench_drafters.py --prompts question.jsonl --draft-model smollm2-draft \\
        --draft ngram head ngram+head self --batch 1 4 16 --questions 4
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_spec import BatchingConfig, SpeculationConfig, batch_generate, load
from mlx_spec.bench.comparing import common
from mlx_spec.pipeline.prompt_file import read_prompt_file

import mlx.core as mx  # isort: skip

from bench_support.results import add_save, finish, table

PLAIN = "plain"
Settings = argparse.Namespace


@dataclass
class Cell:
    """One method on one category at one batch size; medians over rounds are taken of the speeds."""

    tokens_per_second: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    row_steps: int = 0

    @property
    def speed(self) -> float:
        """Tokens per second of decoding."""
        return statistics.median(self.tokens_per_second)

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that stood."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def each_pass(self) -> float:
        """Tokens that a row gains by a pass of the target."""
        return self.tokens / self.row_steps


def questions(path: Path, longest: int) -> dict[str, list[str]]:
    """Questions by category, the first of each dialogue, but for very long ones."""
    found: dict[str, list[str]] = defaultdict(list)
    for one in read_prompt_file(path, "bench_drafters"):
        if len(one.prompt) <= longest:
            found[one.category].append(one.prompt)
    return dict(found)


def spread(texts: Sequence[str], most: int) -> list[str]:
    """At most so many of them, from all over. None comes twice: a drafter may learn from others."""
    step = max(1, len(texts) // most)
    return list(texts[::step][:most])


class Bench:
    """A target, a draft model if any, and the settings of all runs."""

    def __init__(self, options: Settings) -> None:
        self.options = options
        self.model, self.tokenizer = load(options.model)
        self.draft = load(options.draft_model) if options.draft_model else None

    def run(self, method: str, texts: Sequence[str], batch: int, cell: Cell) -> list[list[int]]:
        """One call; what it says goes into ``cell``, its tokens are returned."""
        plain = method == PLAIN
        mx.clear_cache()
        made = batch_generate(
            self.model,
            self.tokenizer,
            list(texts),
            chat=True,
            draft_model=None if plain or not _needs_model(method) else self.draft,
            speculation=SpeculationConfig(
                enabled=not plain,
                draft=None if plain else method,
                num_draft_tokens=self.options.num_draft_tokens,
            ),
            batching=BatchingConfig(batch_size=batch),
            max_tokens=self.options.max_tokens,
            temperature=self.options.temp,
            seed=1,
        )
        stats = made.stats
        cell.tokens_per_second.append(stats.generation_tokens / stats.generation_time)
        cell.drafted += stats.drafted
        cell.accepted += stats.accepted
        cell.tokens += stats.generation_tokens
        cell.row_steps += stats.row_steps
        return [list(result.token_ids) for result in made.results]


def _needs_model(method: str) -> bool:
    return bool({"model", "head"} & set(method.split("+")))


def measure(bench: Bench, texts: Sequence[str], batch: int) -> tuple[dict[str, Cell], float]:
    """All methods in turn; and the share of tokens at which none differs from plain decoding."""
    methods = [PLAIN, *bench.options.draft]
    cells = {name: Cell() for name in methods}
    same = total = 0
    for turn in range(bench.options.rounds):
        order = methods[turn % len(methods) :] + methods[: turn % len(methods)]
        said = {name: bench.run(name, texts, batch, cells[name]) for name in order}
        for name in bench.options.draft:
            for ours, plain in zip(said[name], said[PLAIN], strict=True):
                total += len(plain)
                same += common(ours, plain)
    return cells, same / total if total else 1.0


def rows_of(cells: dict[str, dict[str, Cell]], methods: Sequence[str]) -> Iterator[list[str]]:
    """A table's rows: a category each, then the medians."""
    for category, each in cells.items():
        plain = each[PLAIN].speed
        yield [category, f"{plain:.1f}"] + [
            f"{each[name].speed / plain:.2f} ({each[name].acceptance:.2f}, "
            f"{each[name].each_pass:.2f})"
            for name in methods
        ]
    medians = [
        statistics.median(each[name].speed / each[PLAIN].speed for each in cells.values())
        for name in methods
    ]
    plain = statistics.median(each[PLAIN].speed for each in cells.values())
    yield ["median", f"{plain:.1f}"] + [f"**{ratio:.2f}**" for ratio in medians]


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft-model", help="of the methods model and head")
    parser.add_argument("--draft", nargs="+", default=["ngram"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--categories", nargs="+", help="only these")
    parser.add_argument("--questions", type=int, default=4, help="of each category")
    parser.add_argument("--longest", type=int, default=2400, help="characters of a question")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--num-draft-tokens", type=int, default=6)
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=1)
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Measure all settings; print a table for each batch size, and one JSON line."""
    options = parse()
    bench = Bench(options)
    texts = questions(options.prompts, options.longest)
    texts = {name: one for name, one in texts.items() if name in (options.categories or texts)}
    warm = next(iter(texts.values()))[:1]
    for method in (PLAIN, *options.draft):
        bench.run(method, warm, 1, Cell())
    records = []
    for batch in options.batch:
        cells: dict[str, dict[str, Cell]] = {}
        alike = {}
        for category, own in texts.items():
            prompts = spread(own, max(batch, options.questions))
            cells[category], alike[category] = measure(bench, prompts, batch)
        table(
            f"B={batch}, T={options.temp}: over plain (acceptance, tokens a pass of a row)",
            ("category", "plain tok/s", *options.draft),
            list(rows_of(cells, options.draft)),
        )
        print(f"same tokens as plain: {min(alike.values()):.3f} at least", flush=True)
        records.append(
            {
                "batch": batch,
                "same": alike,
                "cells": {
                    category: {name: vars(cell) for name, cell in each.items()}
                    for category, each in cells.items()
                },
            }
        )
    finish(options, records)


if __name__ == "__main__":
    main()
