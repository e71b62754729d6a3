"""Random constraints in batches with drafts and preemptions: all hold, and drafts change nothing.

python scripts/fuzz_structured.py                  # 10,000 of them, half an hour of one core
python scripts/fuzz_structured.py --count 500 --first 20000 --family qwen3_next

Each is decoded plainly and with drafts of which 30% are wrong, in rows that come, go and are
preempted. JSON is checked by jsonschema, other texts by Python's own expressions.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["MLX_SPEC_BLAS"] = "off"  # MLX's own, whose rows agree bit for bit whatever the batch
sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.structured_runs import constraints, invalid, knowing, run

AT_ONCE = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--family", default="llama")
    given = parser.parse_args()
    wrong, ended, drafted, accepted = 0, 0, 0, 0
    begun = time.perf_counter()
    for first in range(given.first, given.first + given.count, AT_ONCE):
        wanted = constraints(min(AT_ONCE, given.first + given.count - first), first)
        plain = run(wanted, family=given.family, rows=16, drafted=False)[1]
        _, made = run(wanted, family=given.family, rows=8, drafter=knowing(plain), preempting=5)
        for text in invalid(wanted, plain):
            print("INVALID", text)
            wrong += 1
        for number, (row, other) in enumerate(zip(made, plain, strict=True)):
            if row.tokens != other.tokens or row.error or other.error:
                print("DIFFERS", first + number, wanted[number].structure, row.error, other.error)
                wrong += 1
        ended += sum(row.finish_reason == "stop" for row in plain)
        drafted += sum(row.drafted for row in made)
        accepted += sum(row.accepted for row in made)
        done, seconds = first + len(wanted) - given.first, time.perf_counter() - begun
        print(
            f"{done} constraints, {wrong} wrong, {ended} ended by themselves, "
            f"{accepted} of {drafted} guesses accepted, {seconds:.0f} s",
            flush=True,
        )
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
