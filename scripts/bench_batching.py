"""What batching is worth: one table for each question, on the embedded pair with a widened target.

    python scripts/bench_batching.py --width 32768 --rounds 3
    python scripts/bench_batching.py --only prefix gap

Questions: ``static`` (continuous against static batching, mixed lengths), ``prefix`` (a repeated
beginning, kept or not), ``timeout`` (how long an idle batch waits, against latency), ``gap`` (the
pause that a long prompt makes in a running stream). Methods
run in turn (``bench_support.rounds``); times are of the whole call, prefill included. The last line
is JSON.
"""

from __future__ import annotations

import argparse

from bench_support.pair import load_pair  # loads the fast BLAS, before mlx
from bench_support.questions import QUESTIONS
from bench_support.results import add_save, finish


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sorted(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16384, help="MLP width; 0 leaves the target")
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Answer the questions, one table each."""
    options = parse()
    pair = load_pair(options.width)
    results = {name: QUESTIONS[name](pair, options.rounds) for name in options.only}
    finish(options, results)


if __name__ == "__main__":
    main()
