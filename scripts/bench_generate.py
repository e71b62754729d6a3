"""Generation speed: mlx-lm plain, speculative and batched against ours, same prompts, same pair.

The embedded pair's target is widened first (``bench_support.pair``); its vocabulary of 2,048 tokens
is padded to 151,936 in a second run, with the same texts. The methods run interleaved, round after
round; the tables show medians, and every comparison is a median of ratios within a round, since
these machines are shared.

    python scripts/bench_generate.py --batch 1 2 4 8 16 --temp 0 0.8 --rounds 5
    python scripts/bench_generate.py --width 2048 --only ours before batch_generate \
        --against ../before/.venv/bin/python

``--against`` names the Python of an environment in which another version of mlx-spec is installed:
it runs as a process beside, in turn with the others, and ratios to it are shown.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from bench_support.generation import Work, methods, timed  # loads the fast BLAS, before mlx
from bench_support.other import OtherVersion
from bench_support.pair import Pair, load_pair
from bench_support.results import add_save, finish, table
from bench_support.rounds import Series, interleave, ratio

SPEED = "tokens_per_second"
Settings = argparse.Namespace


def measure(pair: Pair, work: Work, other: OtherVersion | None, options: Settings) -> Any:
    """Run every method once a round; series and the last notes by method."""
    runs: dict[str, Any] = {
        name: partial(timed, run)
        for name, run in methods(pair, work, options.mlx_lm_draft_tokens).items()
    }
    if other is not None:
        runs["before plain"] = partial(other.run, work, speculate=False)
        runs["before speculative"] = partial(other.run, work, speculate=True)
    wanted = options.only or [""]
    runs = {name: runs[name] for name in runs if any(word in name for word in wanted)}
    notes: dict[str, Any] = {}

    def noted(name: str) -> dict[str, float]:
        figures = runs[name]()
        notes[name] = figures.pop("notes")
        return dict(figures)

    return interleave({name: partial(noted, name) for name in runs}, options.rounds), notes


def compared(results: dict[str, Series]) -> dict[str, float]:
    """Medians of ratios within a round, of what was run."""
    pairs = [
        ("ours plain", "mlx-lm batch_generate"),
        ("ours speculative", "ours plain"),
        ("ours plain", "before plain"),
        ("ours speculative", "before speculative"),
    ]
    pairs += [("ours speculative", name) for name in results if "mlx-lm speculative" in name]
    return {
        f"{ours} / {theirs}": round(ratio(results[ours], results[theirs], SPEED), 3)
        for ours, theirs in pairs
        if theirs in results
    }


def report(results: dict[str, Series], notes: dict[str, Any], work: Work, size: int) -> Any:
    """Print one setting's table; return it as a record."""
    rows = [
        (name, series.span(SPEED), f"{max(series.each('peak_mb')):.0f}", notes[name] or "")
        for name, series in results.items()
    ]
    words = f"B={work.batch}, T={work.temp}, {size:,} tokens of vocabulary"
    table(words, ("method", "tok/s (min-max)", "peak MB", "notes"), rows)
    ratios = compared(results)
    print(", ".join(f"{name}: {value:.2f}" for name, value in ratios.items()), flush=True)
    return {
        "batch": work.batch,
        "temp": work.temp,
        "vocabulary": size,
        SPEED: {name: round(series.median(SPEED), 2) for name, series in results.items()},
        "peak_mb": {name: round(max(s.each("peak_mb"))) for name, s in results.items()},
        "ratios": ratios,
        "notes": {name: note for name, note in notes.items() if note},
    }


def run(vocabulary: int, options: Settings) -> list[Any]:
    """All settings with one size of vocabulary."""
    pair = load_pair(options.width, vocabulary)
    other = None
    if options.against:
        other = OtherVersion(options.against, options.width, vocabulary)
        print(f"before: {other.version}")
    size = vocabulary or len(pair.model.model.embed_tokens.weight)
    records = []
    for temp in options.temp:
        for batch in options.batch:
            lengths = (options.num_draft_tokens, not options.fixed)
            work = Work(batch, temp, options.max_tokens, *lengths)
            records.append(report(*measure(pair, work, other, options), work, size))
    if other is not None:
        other.close()
    return records


def parse() -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--temp", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=32768, help="MLP width; 0 leaves the target")
    parser.add_argument(
        "--vocabulary", type=int, nargs="+", default=[0, 151_936], help="0 leaves the pair's own"
    )
    parser.add_argument("--against", metavar="PYTHON", help="of another version's environment")
    parser.add_argument("--only", nargs="+", help="methods with one of these words in their name")
    parser.add_argument("--num-draft-tokens", type=int, default=8, help="our maximum")
    parser.add_argument("--fixed", action="store_true", help="always draft our maximum")
    parser.add_argument("--mlx-lm-draft-tokens", type=int, nargs="+", default=[3, 6])
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Measure all settings and print tables and one JSON line."""
    options = parse()
    records = [record for size in options.vocabulary for record in run(size, options)]
    finish(options, records)


if __name__ == "__main__":
    main()
