"""Makes docs/benchmarks.md and its charts of the records in docs/results.

    python scripts/make_benchmarks.py              # the page, of what was measured
    python scripts/make_benchmarks.py --commands   # how each record is measured
    python scripts/make_benchmarks.py --measure rules load --prompts question.jsonl

Measuring takes minutes a record, on a machine that has nothing else to do; without names all are
measured, one after the other.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from bench_support.page import pictures, render
from bench_support.results import RESULTS, ROOT
from bench_support.sections import SECTIONS

PAGE, CHARTS = ROOT / "docs" / "benchmarks.md", RESULTS / "charts"


def commands(prompts: str) -> dict[str, str]:
    """What measures each record, by name."""
    found = {name: one for section in SECTIONS for name, one in section.commands.items()}
    return {
        name: f"scripts/{one.replace('PROMPTS', shlex.quote(prompts))} --save {name}"
        for name, one in found.items()
    }


def measure(names: list[str], prompts: str) -> int:
    """Run what was asked for; how many failed."""
    known, failed = commands(prompts), 0
    for name in names or known:
        print(f"--- {name}: {known[name]}", flush=True)
        run = subprocess.run([sys.executable, *shlex.split(known[name])], cwd=ROOT, check=False)
        failed += run.returncode != 0
    return failed


def make(page: Path = PAGE, charts: Path = CHARTS) -> None:
    """The page and its charts; charts that it does not show go."""
    made = {picture.write(charts) for picture in pictures(SECTIONS, RESULTS)}
    for path in charts.glob("*.svg"):
        if path not in made:
            path.unlink()
    page.write_text(render(SECTIONS, RESULTS), encoding="utf-8")


def main() -> int:
    """As the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", action="store_true", help="print them, and make nothing")
    parser.add_argument("--measure", nargs="*", metavar="RECORD", help="first; without names, all")
    parser.add_argument("--prompts", default="question.jsonl", help="Spec-Bench's questions")
    options = parser.parse_args()
    if options.commands:
        for name, one in commands(options.prompts).items():
            print(f"{name}: python {one}")
        return 0
    unknown = set(options.measure or []) - set(commands(""))
    if unknown:
        parser.error(f"no record is called {', '.join(sorted(unknown))}")
    failed = 0 if options.measure is None else measure(options.measure, options.prompts)
    make()
    return min(1, failed)


if __name__ == "__main__":
    raise SystemExit(main())
