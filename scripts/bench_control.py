"""How long a policy takes to choose and to learn, in microseconds a step.

    python scripts/bench_control.py
    python scripts/bench_control.py --rows 8 32 --drafts 6

Medians over the steps of one run, on a simulated machine: texts that are easy (it drafts) and
hopeless (it parks), and with a quarter of the rows about to end.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from simulated.machines import COMPUTE, DRAFTER, Machine

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Evidence
from mlx_spec.control.shared import PairMeasurements


@dataclass(eq=False)
class Row:
    """A row that never moves on."""

    remaining: int
    evidence: Evidence | None = None
    length: int = 100

    @property
    def room(self) -> int:
        """As many guesses as leave the target a token."""
        return max(0, self.remaining - 1)


def adaptive(machine: Machine, most: int) -> AdaptiveDrafts:
    """A policy that knows what steps cost."""
    prices = machine.prices()
    drafter = CostlyDraft(DRAFTER, most, prices, PairMeasurements())
    return AdaptiveDrafts(SpeculationConfig(num_draft_tokens=most), prices, [drafter])


def steps(
    policy: DraftLengthPolicy, rows: list[Row], chance: float, count: int
) -> Iterator[tuple[float, float]]:
    """Microseconds of choosing and of observing, step by step."""
    rng = random.Random(0)
    for _ in range(count):
        started = time.perf_counter()
        lengths = policy.choose(rows)
        chosen = time.perf_counter() - started
        accepted = [next((i for i in range(n) if rng.random() > chance), n) for n in lengths]
        passes, tokens = max(lengths), len(rows) + sum(lengths)
        seconds = COMPUTE.seconds(len(rows), tokens, passes) * rng.lognormvariate(0, 0.05)
        ran = {DRAFTER: passes} if passes else {}
        report = StepReport(rows, lengths, accepted, seconds, True, tokens=tokens, passes=ran)
        started = time.perf_counter()
        policy.observe(report)
        yield 1e6 * chosen, 1e6 * (time.perf_counter() - started)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--drafts", type=int, nargs="+", default=[6, 8])
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    print("| rows | K | policy | choose | observe |\n|---|---|---|---|---|")
    for count in options.rows:
        for most in options.drafts:
            for name, policy, chance, ending in (
                ("adaptive, drafting", adaptive(COMPUTE, most), 0.8, 0),
                ("adaptive, parked", adaptive(COMPUTE, most), 0.0, 0),
                ("adaptive, a quarter ends", adaptive(COMPUTE, most), 0.8, count // 4),
                ("fixed", FixedDraftLength(most), 0.8, 0),
            ):
                rows = [Row(4 if i < ending else 10**6) for i in range(count)]
                timed = list(steps(policy, rows, chance, options.steps))[100:]
                choose, observe = (median(column) for column in zip(*timed, strict=True))
                print(f"| {count} | {most} | {name} | {choose:.1f} | {observe:.1f} |")


if __name__ == "__main__":
    main()
