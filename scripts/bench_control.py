"""How long a policy takes to choose and to learn, in microseconds a step.

    python scripts/bench_control.py
    python scripts/bench_control.py --rows 8 32 --drafts 6

Medians over the steps of one run, and the mean of all together, on a simulated machine: texts that
are easy (it drafts) and hopeless (it parks), with a quarter of the rows about to end, and with a
drafter that says how sure it is.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from simulated.machines import DRAFTER, FLAT, Machine

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Evidence
from mlx_spec.control.shared import PairMeasurements


@dataclass(eq=False)
class Row:
    """A row that never moves on."""

    remaining: int
    evidence: Evidence | None = None
    length: int = 100
    brings_guesses: bool = False

    @property
    def room(self) -> int:
        """As many guesses as leave the target a token."""
        return max(0, self.remaining - 1)


def adaptive(machine: Machine, most: int, *, reads: bool = False) -> AdaptiveDrafts:
    """A policy that knows what steps cost."""
    prices = machine.prices()
    drafter = CostlyDraft(DRAFTER, most, prices, PairMeasurements())
    return AdaptiveDrafts(SpeculationConfig(num_draft_tokens=most), prices, [drafter], reads=reads)


@dataclass
class Took:
    """Microseconds of one step.

    Attributes:
        choose, observe: of planning it, and of learning from it.
        picking: of judging guesses while they are made, and of picking among them.
    """

    choose: float
    observe: float
    picking: float = 0.0


class Clock:
    """Microseconds since it was asked last."""

    def __init__(self) -> None:
        self._then = time.perf_counter()

    def lap(self) -> float:
        """And from now on."""
        before, self._then = self._then, time.perf_counter()
        return 1e6 * (self._then - before)


def steps(policy: Any, rows: list[Row], chance: float, count: int) -> Iterator[Took]:
    """What each step takes; where the policy picks, ``chance`` is that of a token being easy."""
    rng = random.Random(0)
    for _ in range(count):
        clock = Clock()
        lengths = policy.choose(rows)
        took, passes = Took(clock.lap(), 0.0), max(lengths)
        easy = [[0.92 if rng.random() < chance else 0.02 for _ in range(passes)] for _ in rows]
        if passes and getattr(policy, "picks", False):
            clock.lap()
            settled = policy.settle(rows, [], [True] * len(rows))
            most, passes, took.picking = max(settled.lengths), 1, clock.lap()
            said = [row[:1] for row in easy]
            while passes < most and not policy.enough(rows, said):
                took.picking += clock.lap()
                passes += 1
                said = [row[:passes] for row in easy]
                clock.lap()
            lengths = policy.pick(rows, said)
            took.picking += clock.lap()
        accepted = [
            next((i for i in range(n) if rng.random() > row[i]), n)
            for n, row in zip(lengths, easy, strict=True)
        ]
        tokens = len(rows) + sum(lengths)
        seconds = FLAT.seconds(len(rows), tokens, passes) * rng.lognormvariate(0, 0.05)
        ran = {DRAFTER: passes} if passes else {}
        report = StepReport(rows, lengths, accepted, seconds, True, tokens=tokens, passes=ran)
        clock.lap()
        policy.observe(report)
        took.observe = clock.lap()
        yield took


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--drafts", type=int, nargs="+", default=[6, 8])
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    print(
        "| rows | K | policy | choose | observe | pick | all, mean |\n|---|---|---|---|---|---|---|"
    )
    for count in options.rows:
        for most in options.drafts:
            for name, policy, chance, ending in (
                ("adaptive, drafting", adaptive(FLAT, most), 0.8, 0),
                ("adaptive, parked", adaptive(FLAT, most), 0.0, 0),
                ("adaptive, a quarter ends", adaptive(FLAT, most), 0.8, count // 4),
                ("adaptive, picking", adaptive(FLAT, most, reads=True), 0.6, 0),
                ("fixed", FixedDraftLength(most), 0.8, 0),
            ):
                rows = [Row(4 if i < ending else 10**6) for i in range(count)]
                timed = list(steps(policy, rows, chance, options.steps))[100:]
                columns = zip(*((t.choose, t.observe, t.picking) for t in timed), strict=True)
                parts = [median(column) for column in columns]
                mean = sum(t.choose + t.observe + t.picking for t in timed) / len(timed)
                cells = " | ".join(f"{part:.1f}" for part in (*parts, mean))
                print(f"| {count} | {most} | {name} | {cells} |")


if __name__ == "__main__":
    main()
