"""The draft-length policy on simulated machines: what it finds, and what one would who knew.

    python scripts/simulate.py                 # tables on the screen
    python scripts/simulate.py --save docs     # docs/simulation.md and its charts

No clock and no model: machines and texts are those of ``scripts/simulated``, everything is seeded,
so the figures are the same everywhere.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulated.charts import draw_rows, draw_starts
from simulated.knowing import Clairvoyant
from simulated.lookups import closed_batches
from simulated.machines import DRAFTER, M1_ULTRA, M3_ULTRA, M3_ULTRA_CHANCES, SHAPES, Machine
from simulated.page import PAGE, markdown
from simulated.play import Conditions, Run, Simulation
from simulated.regret import (
    BEFORE,
    CONVERGED,
    MOST,
    SHIFTS,
    STEPS,
    TEXTS,
    Effort,
    Lost,
    batch,
    best,
    picked,
    shifted,
    steady,
    together,
    visits,
)
from simulated.texts import CATEGORIES, TOKENS, Workload, even

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.demand import RowDemand
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.shared import PairMeasurements

# By rows.
EFFORT = {1: Effort(12), 4: Effort(6), 16: Effort(3), 64: Effort(2), 256: Effort(1)}
PICKED = {1: Effort(8), 4: Effort(4), 16: Effort(2), 64: Effort(1), 256: Effort(1, 100)}
# Of plain decoding: published for a fixed depth of 3.
PUBLISHED = {1: 2.15, 2: 1.40, 4: 1.07, 6: 1.27, 8: 1.43}
PUBLISHED |= {10: 1.00, 12: 1.26, 16: 1.34, 24: 1.03, 32: 0.82}


def adaptive(
    machine: Machine, most: int = MOST, *, reads: bool = False, demand: RowDemand | None = None
) -> AdaptiveDrafts:
    """A policy that knows what steps cost, and nothing of its drafter."""
    prices = machine.prices()
    drafter = CostlyDraft(DRAFTER, most, prices, PairMeasurements())
    config = SpeculationConfig(num_draft_tokens=most)
    return AdaptiveDrafts(config, prices, [drafter], reads=reads, demand=demand)


def reading(machine: Machine) -> AdaptiveDrafts:
    """One that may ask how sure the drafter is."""
    return adaptive(machine, reads=True)


def plain(machine: Machine, rows: int) -> float:
    """Tokens per second without a draft."""
    work = batch(rows, (0.0,))
    return Simulation(FixedDraftLength(0), machine, work, Conditions(noise=0.0)).steps(2).merit()


def percent(cells: Sequence[float]) -> str:
    """Mean, and the worst setting."""
    return f"{100 * max(sum(cells) / len(cells), 0):.1f} ({100 * max(cells):.1f})"


def losses(cells: Sequence[Lost]) -> list[str]:
    """Of settings: over all steps, from the 30th on, and the worst run of all."""
    worst = 100 * max(cell.worst for cell in cells)
    return [percent([c.all for c in cells]), percent([c.later for c in cells]), f"{worst:.1f}"]


def hostile(machine: Machine) -> float:
    """Of plain decoding, by a drafter that is never right, on requests of 48 tokens, the worst
    batch size."""
    shares = []
    for rows in EFFORT:
        short = Workload(rows, lambda rng: even(0.0), tokens=lambda rng: 48)
        run = Simulation(adaptive(machine), machine, short, Conditions(seed=1)).steps(STEPS)
        shares.append(run.merit() / plain(machine, rows))
    return min(shares)


def regrets(machine: Machine) -> list[str]:
    """All of one machine, as a line of the table."""
    still = [
        steady(adaptive, machine, batch(rows, chances), effort)
        for rows, effort in EFFORT.items()
        for chances in TEXTS
    ]
    moved = [
        shifted(adaptive, machine, rows, texts, effort)
        for rows, effort in EFFORT.items()
        for texts in SHIFTS
    ]
    return [machine.name, *losses(still), *losses(moved), f"{hostile(machine):.3f}"]


def picks(machine: Machine) -> list[str]:
    """With a drafter that says how sure it is, whether that is heard or not."""
    cells = {
        make: [
            picked(make, machine, rows, tokens, effort).all
            for rows, effort in PICKED.items()
            for tokens in TOKENS
        ]
        for make in (reading, adaptive)
    }
    return [machine.name, *map(percent, cells.values())]


@dataclass(frozen=True)
class Published:
    """A published machine at one batch size, over plain decoding."""

    rows: int
    fixed: float
    found: float
    known: float
    usual: str

    @property
    def cells(self) -> list[str]:
        """Of a table."""
        ratios = f"{self.fixed:.2f}", f"**{self.found:.2f}**", f"{self.known:.2f}"
        return [*ratios, self.usual]


def published(machine: Machine, rows: int, most: int = 3) -> Published:
    """What a fixed depth gives there, what the policy finds, and what there is to be found."""
    work, base = batch(rows, M3_ULTRA_CHANCES), plain(machine, rows)
    quiet = Conditions(noise=0.0)
    fixed = Simulation(FixedDraftLength(most), machine, work, quiet).steps(2).merit()
    runs = [
        Simulation(adaptive(machine, most), machine, work, Conditions(seed=seed)).steps(STEPS)
        for seed in range(4)
    ]
    found, known = together(runs, CONVERGED), best(machine, work, most)
    return Published(rows, fixed / base, found / base, known / base, _usual(runs[0]))


def _usual(run: Run) -> str:
    """Guesses of a step, and tokens that it verifies, as they mostly are."""
    totals = [sum(lengths) for lengths in run.lengths[30:]]
    usual = max(set(totals), key=totals.count)
    return f"{run.usual(30)}, {len(run.lengths[-1]) + usual}"


@dataclass(frozen=True)
class Mixed:
    """Texts of all categories on one machine, over plain decoding."""

    machine: str
    rows: int
    found: float
    known: float
    fixed: float
    best: int

    @property
    def cells(self) -> list[str]:
        """Of a table."""
        fixed = f"{self.fixed:.2f} ({self.best})"
        return [f"**{self.found:.2f}**", f"{self.known:.2f}", fixed]


def categories(machine: Machine, rows: int) -> Mixed:
    """Requests of 40 to 200 tokens that come and go: the same ones, whoever guesses."""
    work = visits(rows)

    def total(make: object) -> float:
        runs = []
        for seed in range(4 if rows <= 16 else 1):
            policy = make()  # type: ignore[operator]
            runs.append(Simulation(policy, machine, work, Conditions(seed=seed)).steps(STEPS))
        return together(runs)

    base = plain(machine, rows)
    fixed = [total(lambda k=k: FixedDraftLength(k)) / base for k in range(MOST + 1)]
    others = RowDemand(waiting=rows)
    found = total(lambda: adaptive(machine, demand=others))
    known = total(lambda: Clairvoyant(machine, MOST))
    top = max(fixed)
    return Mixed(machine.name, rows, found / base, known / base, top, fixed.index(top))


def starts(machine: Machine) -> list[float]:
    """Speed over that of one who knows, by five steps: easy texts, hard from 100, easy again."""
    runs, phases = [], (0.8, 0.2, 0.8)
    for seed in range(16):
        simulation = Simulation(
            adaptive(machine), machine, batch(4, phases[:1]), Conditions(seed=seed)
        )
        for chance in phases:
            for row in simulation.rows:
                row.text = even(chance)
            simulation.steps(100)
        runs.append(simulation.run)
    goals = [best(machine, batch(4, (chance,))) for chance in phases]
    return [
        sum(sum(run.expected[at : at + 5]) / sum(run.seconds[at : at + 5]) for run in runs)
        / (len(runs) * goals[at // 100])
        for at in range(0, 300, 5)
    ]


def page(figures: dict[str, str]) -> str:
    """The whole report."""
    return PAGE.format(
        runs=", ".join(str(effort.runs) for effort in EFFORT.values()),
        rows=", ".join(map(str, EFFORT)),
        texts=", ".join("/".join(f"{chance:g}" for chance in text) for text in TEXTS),
        shifts=", ".join(f"{a:g} to {b:g}" for (a,), (b,) in SHIFTS),
        steps=STEPS,
        before=BEFORE,
        most=MOST,
        tokens=", ".join(TOKENS),
        categories=", ".join(f"{name} {chances[0]:g}" for name, chances in CATEGORIES.items()),
        **figures,
    )


VISITED = (4, 16, 64, 256)  # rows, with texts that come and go
# Machines are known to other processes by their places: their prices are functions.
PACKING = [number for number, machine in enumerate(SHAPES) if machine.packs]


def _regrets(number: int) -> list[str]:
    return regrets(SHAPES[number])


def _picks(number: int) -> list[str]:
    return picks(SHAPES[number])


def _categories(number: int, rows: int) -> Mixed:
    return categories(SHAPES[number], rows)


def measure(jobs: int | None) -> tuple[dict[str, str], list[Published]]:
    """All tables, and the figures of the chart."""
    numbers = range(len(SHAPES))
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        lost, heard = pool.map_async(_regrets, numbers, 1), pool.map_async(_picks, PACKING, 1)
        both = pool.starmap(_categories, [(n, rows) for n in numbers for rows in VISITED], 1)
        found = {"lost": lost.get(), "heard": heard.get()}
    m3 = [published(M3_ULTRA, rows) for rows in PUBLISHED]
    m1 = [published(M1_ULTRA, rows) for rows in (1, 2, 4, 8, 16)]
    losing = "steady", "from step 30", "worst run"
    moving = "after a shift", "from step 30", "worst run"
    tables = {
        "regret": markdown(("machine", *losing, *moving, "never right"), found["lost"]),
        "picked": markdown(("machine", "heard", "by averages"), found["heard"]),
        "m3": markdown(
            ("rows", "published, depth 3", "depth 3 here", "adaptive", "known", "K, M"),
            [[f"{one.rows}", f"{PUBLISHED[one.rows]:.2f}", *one.cells] for one in m3],
        ),
        "m1": markdown(
            ("rows", "depth 3", "adaptive", "known", "K, M"),
            [[f"{one.rows}", *one.cells] for one in m1],
        ),
        "closed": markdown(("batch", "not told", "told"), closed_batches()),
        "mixed": markdown(
            ("machine", "rows", "adaptive", "known", "fixed (K)"),
            [[one.machine, f"{one.rows}", *one.cells] for one in both],
        ),
    }
    return tables, m3


def main() -> None:
    """Print the report, or write it with its charts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", type=Path, help="folder of simulation.md and charts/")
    parser.add_argument("--jobs", type=int, help="processes; as many as there are cores")
    options = parser.parse_args()
    tables, m3 = measure(options.jobs)
    text = page(tables)
    if options.save is None:
        print(text)
        return
    options.save.mkdir(parents=True, exist_ok=True)
    (options.save / "simulation.md").write_text(text)
    ratios = {
        "published, depth 3": [PUBLISHED[one.rows] for one in m3],
        "depth 3, chances .87 .68 .53": [one.fixed for one in m3],
        "adaptive": [one.found for one in m3],
    }
    charts = options.save / "charts"
    draw_rows([one.rows for one in m3], ratios, charts / "simulation-m3-ultra.svg")
    speeds = {machine.name: starts(machine) for machine in SHAPES[:5]}
    draw_starts(speeds, charts / "simulation-start.svg")


if __name__ == "__main__":
    main()
