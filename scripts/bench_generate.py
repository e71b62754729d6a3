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

from bench_support.generation import BOTH, Work, methods, prompts, timed  # BLAS before mlx
from bench_support.other import OtherVersion
from bench_support.pair import Pair, load_pair
from bench_support.results import add_save, finish, table
from bench_support.roofline import Ceiling, FixedSteps, mean_keys
from bench_support.rounds import Series, interleave, ratio

SPEED = "tokens_per_second"
THEIRS, FIXED = "mlx-lm speculative", "ours fixed"
Settings = argparse.Namespace


def measure(pair: Pair, work: Work, other: OtherVersion | None, options: Settings) -> Any:
    """Run every method once a round; series, and the last notes and average steps by method."""
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
    steps: dict[str, FixedSteps | None] = {}

    def noted(name: str) -> dict[str, float]:
        figures = runs[name]()
        notes[name], steps[name] = figures.pop("notes"), figures.pop("step", None)
        return dict(figures)

    found = interleave({name: partial(noted, name) for name in runs}, options.rounds)
    return found, notes, steps


def compared(results: dict[str, Series]) -> dict[str, float]:
    """Medians of ratios within a round, of what was run."""
    pairs = [
        ("ours plain", "mlx-lm batch_generate"),
        ("ours speculative", "ours plain"),
        (f"ours {BOTH}", "ours plain"),
        ("ours plain", "before plain"),
        ("ours speculative", "before speculative"),
    ]
    pairs += [("ours speculative", name) for name in results if name.startswith((THEIRS, FIXED))]
    return {
        f"{ours} / {theirs}": round(ratio(results[ours], results[theirs], SPEED), 3)
        for ours, theirs in pairs
        if ours in results and theirs in results
    }


def ceiling(
    pair: Pair, work: Work, results: dict[str, Series], steps: dict[str, FixedSteps | None]
) -> dict[str, Any]:
    """Ours beside mlx-lm's own speculation at its best fixed length, and what can be had of it.

    *ceiling* is the best fixed length of ours if its steps, and plain ones, took nothing but their
    passes, by the timed costs of passes and by what was accepted.
    """
    theirs = {name: series.median(SPEED) for name, series in results.items() if THEIRS in name}
    fixed = {name: step for name, step in steps.items() if FIXED in name and step is not None}
    if not (
        theirs and fixed and {"ours plain", "ours speculative", f"ours {BOTH}"} <= results.keys()
    ):
        return {}
    best = max(theirs, key=theirs.__getitem__)
    keys = mean_keys(list(map(len, prompts(pair, work))), work.batch, work.max_tokens)
    prices = Ceiling.of_models(pair.model, pair.draft)
    plain, speed = steps["ours plain"], results["ours plain"].median(SPEED)
    assert plain is not None
    # Over plain decoding as it was here: the machine may have had another speed when it was timed.
    over = prices.over_plain(plain, list(fixed.values()), keys)
    roofs = {name: speed * over[step.length] for name, step in fixed.items()}
    roof = max(roofs, key=roofs.__getitem__)
    own = ratio(results["ours speculative"], results[best], SPEED)
    both = ratio(results[f"ours {BOTH}"], results[best], SPEED)
    quickest = max(fixed, key=lambda name: results[name].median(SPEED))
    chosen = ratio(results["ours speculative"], results[quickest], SPEED)
    found = {
        "mlx-lm's best": f"{theirs[best]:.1f} ({best.removeprefix(THEIRS).strip()})",
        "ours / that": f"{own:.2f}",
        f"{BOTH} / that": f"{both:.2f}",
        "ceiling / that": f"{roofs[roof] / theirs[best]:.2f} ({roof.removeprefix(FIXED).strip()})",
        "reached": f"{results['ours speculative'].median(SPEED) / roofs[roof]:.2f}",
        "ours / its best fixed": f"{chosen:.2f} ({quickest.removeprefix(FIXED).strip()})",
    }
    table(f"Against mlx-lm's own speculation, T={work.temp}", tuple(found), [tuple(found.values())])
    return {**found, "ceilings": {name: round(value, 2) for name, value in roofs.items()}}


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
            work = Work(batch, temp, options.max_tokens, *lengths, options.texts)
            results, notes, steps = measure(pair, work, other, options)
            record = report(results, notes, work, size)
            records.append(record | {"ceiling": ceiling(pair, work, results, steps)})
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
    parser.add_argument("--texts", type=int, default=4, help="prompts, at least")
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Measure all settings and print tables and one JSON line."""
    options = parse()
    records = [record for size in options.vocabulary for record in run(size, options)]
    finish(options, records)


if __name__ == "__main__":
    main()
