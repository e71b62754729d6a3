"""What batching is worth to a stage that scores, on a real model, and what it could be at most.

Texts are classified with one row and with more, in turn, round after round. *ceiling* is the ratio
of what the very passes of both take when they are run alone, without caches, labels or Python:
texts are prompts, one of them keeps the cores multiplying already, past that they multiply at their
rate, and attention is each text's own, whoever is beside it. *reached* is the measured ratio over
it.

    python scripts/bench_classify.py --rows 1 4 16
    python scripts/bench_classify.py --joined 12 --phrases
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
from mlx_spec.model.hidden import HiddenLayers, noting
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.trial import any_tokens
from mlx_spec.pipeline.backend import Scoring
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage_runner import StageRunner
from mlx_spec.pipeline.stages import Classify

SNIPPETS = ROOT / "examples" / "data" / "snippets.jsonl"
LABELS = ("code", "cooking", "sports", "finance")
PHRASES = (
    *("software engineering", "software testing", "home cooking", "baking bread"),
    *("team sports", "winter sports", "personal finance", "personal investments"),
)
LOOKS = 3
Shape = tuple[int, int, int]
"""Rows, tokens of each, and of how many tokens logits are made."""
Passes = Counter[tuple[int, int]]
"""How often a pass was run, by its tokens and by those of which logits are made."""


class Nowhere:
    """Takes results and counts them."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def write(self, line: dict[str, Any]) -> None:
        """Keep what was said."""
        self.labels.append(line["label"])


@contextmanager
def noted() -> Iterator[Passes]:
    """The passes that are run while this lasts."""
    passes: Passes = Counter()
    original = ModelRunner.forward

    def forward(self: ModelRunner, rows: Rows) -> mx.array:
        tokens = rows.computed
        all_of_them = 0 if rows.uniform else tokens  # of a prompt no logits are computed
        passes[tokens, all_of_them if rows.chosen is None else rows.chosen.size] += 1
        return original(self, rows)

    ModelRunner.forward = forward  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        ModelRunner.forward = original  # type: ignore[method-assign]


class Contest:
    """The same texts at each number of rows.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.tokenizer = load(options.model)
        lines = SNIPPETS.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        self.records = [
            {**record, "text": " ".join(one["text"] for one in (records * 2)[at:][: 1 + more])}
            for at, record in enumerate(records[: options.texts])
            for more in [at % options.joined]
        ]
        self.labels = PHRASES if options.phrases else LABELS
        self.passes: dict[int, Passes] = {}
        self.said: dict[int, list[str]] = {}

    def run(self, rows: int) -> Figures:
        """One call."""
        backend = Scoring(self.model, self.tokenizer, Flags(batch_size=rows))
        records = [Record(number, fields) for number, fields in enumerate(self.records)]
        sink = Nowhere()
        with noted() as self.passes[rows]:
            started = time.perf_counter()
            runner = StageRunner(Classify(labels=self.labels), backend, sink, look_ahead=4 * rows)
            tally = runner.run(records)
            seconds = time.perf_counter() - started
        assert tally.failed == 0, tally
        self.said[rows] = sink.labels
        return {"texts/s": len(records) / seconds, "seconds": seconds}

    def least(self) -> dict[int, float]:
        """Seconds of each number of rows' passes, run alone; the first number is 1."""
        alone, *_ = self.passes
        lone = Counter[int]()
        for (tokens, _), count in self.passes[alone].items():
            lone[tokens] += count
        wanted: dict[Shape, None] = {}
        for passes in self.passes.values():
            wanted |= dict.fromkeys((tokens, 1, said) for tokens, said in passes)
        wanted |= dict.fromkeys(shape for n in lone for shape in ((1, n, 1), (n, 1, 1)))
        taken = self._timed(list(wanted))
        attention = sum(
            count * max(0.0, taken[1, n, 1] - taken[n, 1, 1]) for n, count in lone.items()
        )
        return {
            rows: attention + sum(count * taken[n, 1, said] for (n, said), count in each.items())
            for rows, each in self.passes.items()
        }

    def _timed(self, shapes: list[Shape]) -> dict[Shape, float]:
        """Medians, in turn."""
        taken: dict[Shape, list[float]] = {shape: [] for shape in shapes}
        for turn in range(LOOKS + 1):
            for rows, width, said in shapes:
                ids = any_tokens(rows * width, width, self.model.args.vocab_size)
                started = time.perf_counter()
                with noting(HiddenLayers()) as notes:
                    notes.chosen = mx.arange(said) if said else None
                    logits = (self.model if said else self.model.model)(ids)
                mx.eval(logits)
                if turn:
                    taken[rows, width, said].append(time.perf_counter() - started)
        return {shape: statistics.median(each) for shape, each in taken.items()}


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--joined", type=int, default=1, help="texts are 1 to so many snippets")
    parser.add_argument("--phrases", action="store_true", help="labels of several tokens")
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
