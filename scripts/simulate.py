"""The draft-length policy on simulated machines: what it finds, and what one would who knew.

    python scripts/simulate.py                 # tables on the screen
    python scripts/simulate.py --save docs     # docs/simulation.md and its charts

No clock and no model: machines and texts are those of ``scripts/simulated``, everything is seeded,
so the figures are the same everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulated.charts import draw_rows, draw_starts
from simulated.knowing import Clairvoyant
from simulated.machines import DRAFTER, M1_ULTRA, M3_ULTRA, M3_ULTRA_CHANCES, SHAPES, Machine
from simulated.play import Conditions, Run, Simulation
from simulated.regret import (
    BEFORE,
    CONVERGED,
    MOST,
    SHIFTS,
    STEPS,
    TEXTS,
    Lost,
    batch,
    best,
    picked,
    shifted,
    steady,
    together,
)
from simulated.texts import CATEGORIES, TOKENS, Workload, even, mixed

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.drafting import CostlyDraft
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.control.shared import PairMeasurements

# Runs of a setting by rows: one row has more luck than many.
RUNS = {1: 24, 4: 12, 16: 6, 64: 3}
PICKED = {1: 8, 4: 4, 16: 2}
# Of plain decoding: published for a fixed depth of 3.
PUBLISHED = {1: 2.15, 2: 1.40, 4: 1.07, 6: 1.27, 8: 1.43}
PUBLISHED |= {10: 1.00, 12: 1.26, 16: 1.34, 24: 1.03, 32: 0.82}


def adaptive(machine: Machine, most: int = MOST, *, reads: bool = False) -> AdaptiveDrafts:
    """A policy that knows what steps cost, and nothing of its drafter."""
    prices = machine.prices()
    drafter = CostlyDraft(DRAFTER, most, prices, PairMeasurements())
    config = SpeculationConfig(num_draft_tokens=most)
    return AdaptiveDrafts(config, prices, [drafter], reads=reads)


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
    for rows in RUNS:
        short = Workload(rows, lambda rng: even(0.0), tokens=lambda rng: 48)
        run = Simulation(adaptive(machine), machine, short, Conditions(seed=1)).steps(STEPS)
        shares.append(run.merit() / plain(machine, rows))
    return min(shares)


def regrets(machine: Machine) -> list[str]:
    """All of one machine, as a line of the table."""
    still = [
        steady(adaptive, machine, batch(rows, chances), runs)
        for rows, runs in RUNS.items()
        for chances in TEXTS
    ]
    moved = [
        shifted(adaptive, machine, rows, texts, runs)
        for rows, runs in RUNS.items()
        for texts in SHIFTS
        if rows <= 16
    ]
    return [machine.name, *losses(still), *losses(moved), f"{hostile(machine):.3f}"]


def picks(machine: Machine) -> list[str]:
    """With a drafter that says how sure it is, whether that is heard or not."""
    cells = {
        make: [
            picked(make, machine, rows, tokens, runs).all
            for rows, runs in PICKED.items()
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
    """Requests of 40 to 200 tokens that come and go; ratios over four seeds."""
    work = Workload(rows, mixed, tokens=lambda rng: rng.randint(40, 200))

    def total(make: object) -> float:
        runs = []
        for seed in range(4):
            policy = make()  # type: ignore[operator]
            runs.append(Simulation(policy, machine, work, Conditions(seed=seed)).steps(STEPS))
        return together(runs)

    base = plain(machine, rows)
    fixed = [total(lambda k=k: FixedDraftLength(k)) / base for k in range(MOST + 1)]
    found, known = total(lambda: adaptive(machine)), total(lambda: Clairvoyant(machine, MOST))
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


PAGE = """# Draft lengths on simulated machines

Made by `python scripts/simulate.py --save docs`; do not edit. No clock and no model: a policy plays
a decoder on machines of which it knows what a calibration would tell it (points at the edges, 5%
noise afterwards), and texts of which it knows nothing.

*Regret* is what it says less, in expected tokens per second, than one that knows all chances and
prices. A setting is played {runs} times with {rows} rows, other luck each time (whose guesses
stood, how long steps took), and counts as one: all expected tokens over all seconds. Tokens are
those that a step says on average and seconds those without noise, so luck moves only what the
policy made of it. `tests/test_draft_regret.py` holds each setting to 3%, over all steps and from
the 30th on, and to 8% after a shift, in fewer runs.

## Regret

Chances that a guess stands {texts}; {steps} steps, at most {most} guesses a row. Percent, mean
over settings (worst setting), and the run that lost most. The shift: after {before} steps all
texts change ({shifts}), and {steps} steps follow; with up to 16 rows. The last
column is a drafter that is never right, over plain decoding, on requests of 48 tokens, the worst
batch size.

{regret}

![How soon the best is found](charts/simulation-start.svg)

## A drafter that says how sure it is

Each token has its own chance, and the drafter says it: {tokens}. *The best* foresees every guess of
a step before it is made, which nobody can: how likely the third one stands is only known once two
were paid for. Percent that is lost against it, mean over settings (worst): by the policy that hears
the drafter, and by one that goes by averages.

{picked}

## Two published machines

*M3 Ultra*: cycles of a 27B model in four bits with its own head at depth 3, and its plain decoding
(MTPLX, 2026), with conditional acceptances of .87, .68 and .53. Between two published numbers of
tokens lies a line; tiles of 32 tokens are taken to begin at 33. However little is drafted, a cycle
is priced as the published one of as many tokens, so what is found is the least that these figures
allow. With one and two rows the published ratios are above what these acceptances give. Over plain
decoding:

{m3}

![M3 Ultra](charts/simulation-m3-ultra.svg)

*M1 Ultra*: verification costs nearly as much for each token as for the first (mlxcel, 2026), and
the published speculation is at 0.59 to 0.70 of plain decoding. The policy parks:

{m1}

## Texts of all categories

Requests of 40 to 200 tokens that come and go, chances of the first guesses {categories};
over plain decoding. *Fixed* is the best of all fixed lengths, found by trying each.

{mixed}
"""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(figures: dict[str, str]) -> str:
    """The whole report."""
    return PAGE.format(
        runs=", ".join(map(str, RUNS.values())),
        rows=", ".join(map(str, RUNS)),
        texts=", ".join("/".join(f"{chance:g}" for chance in text) for text in TEXTS),
        shifts=", ".join(f"{a:g} to {b:g}" for (a,), (b,) in SHIFTS),
        steps=STEPS,
        before=BEFORE,
        most=MOST,
        tokens=", ".join(TOKENS),
        categories=", ".join(f"{name} {chances[0]:g}" for name, chances in CATEGORIES.items()),
        **figures,
    )


def measure() -> tuple[dict[str, str], list[Published]]:
    """All tables, and the figures of the chart."""
    m3 = [published(M3_ULTRA, rows) for rows in PUBLISHED]
    m1 = [published(M1_ULTRA, rows) for rows in (1, 2, 4, 8, 16)]
    both = [categories(machine, rows) for machine in SHAPES for rows in (4, 16)]
    losing = "steady", "from step 30", "worst run"
    moving = "after a shift", "from step 30", "worst run"
    tables = {
        "regret": markdown(("machine", *losing, *moving, "never right"), [*map(regrets, SHAPES)]),
        "picked": markdown(("machine", "heard", "by averages"), [*map(picks, SHAPES)]),
        "m3": markdown(
            ("rows", "published, depth 3", "depth 3 here", "adaptive", "known", "K, M"),
            [[f"{one.rows}", f"{PUBLISHED[one.rows]:.2f}", *one.cells] for one in m3],
        ),
        "m1": markdown(
            ("rows", "depth 3", "adaptive", "known", "K, M"),
            [[f"{one.rows}", *one.cells] for one in m1],
        ),
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
    options = parser.parse_args()
    tables, m3 = measure()
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
