"""What batching is worth to a stage that scores, on a real model, and what it could be at most.

Short texts are classified with one row and with more, in turn, round after round. *ceiling* is the
ratio of what the very passes of both take when they are run alone, without labels or Python: texts
are prompts, one of them keeps the cores multiplying already, past that they multiply at their rate,
and attention is each text's own, whoever is beside it. *reached* is the measured ratio over it.

    python scripts/bench_classify.py --rows 1 4 16
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench_support.results import ROOT, add_save, finish, table
from bench_support.rounds import Figures, interleave, ratio

import mlx.core as mx  # isort: skip
from mlx_spec import load
from mlx_spec.pipeline.backend import Scoring
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage_runner import StageRunner
from mlx_spec.pipeline.stages import Classify

SNIPPETS = ROOT / "examples" / "data" / "snippets.jsonl"
LABELS = ("code", "cooking", "sports", "finance")
LOOKS = 3
Shape = tuple[int, int, bool]
"""Rows, tokens of each, and whether logits are wanted."""
Passes = Counter[tuple[int, bool]]
"""How often a pass was run, by its tokens and whether its logits were read."""


class Nowhere:
    """Takes results and counts them."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def write(self, line: dict[str, Any]) -> None:
        """Keep what was said."""
        self.labels.append(line["label"])


@contextmanager
def noted(model: Any, rows: int) -> Iterator[Passes]:
    """The passes of a model while this lasts; the short ones are those of labels."""
    passes: Passes = Counter()
    kind = type(model)
    original = kind.__call__

    def call(self: Any, inputs: mx.array, *args: Any, **options: Any) -> Any:
        if self is model:
            passes[inputs.size, inputs.size <= rows] += 1
        return original(self, inputs, *args, **options)

    kind.__call__ = call
    try:
        yield passes
    finally:
        kind.__call__ = original


class Contest:
    """The same texts at each number of rows.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.tokenizer = load(options.model)
        lines = SNIPPETS.read_text(encoding="utf-8").splitlines()
        self.records = [json.loads(line) for line in lines][: options.texts]
        self.passes: dict[int, Passes] = {}
        self.said: dict[int, list[str]] = {}

    def run(self, rows: int) -> Figures:
        """One call."""
        backend = Scoring(self.model, self.tokenizer, Flags(batch_size=rows))
        records = [Record(number, fields) for number, fields in enumerate(self.records)]
        sink = Nowhere()
        with noted(self.model, rows) as self.passes[rows]:
            started = time.perf_counter()
            runner = StageRunner(Classify(labels=LABELS), backend, sink, look_ahead=4 * rows)
            tally = runner.run(records)
            seconds = time.perf_counter() - started
        assert tally.failed == 0, tally
        self.said[rows] = sink.labels
        return {"texts/s": len(records) / seconds, "seconds": seconds}

    def least(self) -> dict[int, float]:
        """Seconds of each number of rows' passes, run alone; the first number is 1."""
        alone, *_ = self.passes
        lone = [n for n, logits in self.passes[alone] if not logits]
        wanted: dict[Shape, None] = {}
        for passes in self.passes.values():
            wanted |= dict.fromkeys((tokens, 1, logits) for tokens, logits in passes)
        wanted |= dict.fromkeys((1, tokens, False) for tokens in lone)
        taken = self._timed(list(wanted))
        own = {n: max(0.0, taken[1, n, False] - taken[n, 1, False]) for n in lone}
        attention = sum(self.passes[alone][n, False] * own[n] for n in lone)
        return {
            rows: attention + sum(count * taken[n, 1, read] for (n, read), count in each.items())
            for rows, each in self.passes.items()
        }

    def _timed(self, shapes: list[Shape]) -> dict[Shape, float]:
        """Medians, in turn."""
        taken: dict[Shape, list[float]] = {shape: [] for shape in shapes}
        for turn in range(LOOKS + 1):
            for shape in shapes:
                *size, logits = shape
                ids = mx.ones(size, mx.int32)
                started = time.perf_counter()
                mx.eval(self.model(ids) if logits else self.model.model(ids))
                if turn:
                    taken[shape].append(time.perf_counter() - started)
        return {shape: statistics.median(each) for shape, each in taken.items()}


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    add_save(parser)
    options = parser.parse_args()
    contest = Contest(options)
    series = interleave({str(n): partial(contest.run, n) for n in options.rows}, options.rounds)
    least = contest.least()
    first = options.rows[0]
    lines, records = [], []
    for rows in options.rows:
        gained = ratio(series[str(rows)], series[str(first)], "texts/s")
        ceiling = least[first] / least[rows]
        alike = statistics.mean(
            one == other for one, other in zip(contest.said[rows], contest.said[first], strict=True)
        )
        lines.append(
            [
                rows,
                series[str(rows)].span("texts/s"),
                f"{gained:.2f}",
                f"{ceiling:.2f}",
                f"{gained / ceiling:.2f}",
                sum(contest.passes[rows].values()),
                f"{least[rows]:.2f} of {series[str(rows)].median('seconds'):.2f}",
                f"{alike:.3f}",
            ]
        )
        records.append({"rows": rows, "gained": gained, "ceiling": ceiling, "alike": alike})
    title = f"Classification of {len(contest.records)} texts"
    header = ["rows", "texts/s", f"/ {first} row", "ceiling", "reached", "passes"]
    table(title, [*header, "seconds of passes alone", "same labels"], lines)
    finish(options, records)


if __name__ == "__main__":
    main()
