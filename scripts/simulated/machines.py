"""Machines on which policies are played: what a pass of M tokens and a guess for B rows take.

Seconds are milliseconds that a model might take; only ratios matter. Two machines are published
measurements (MTPLX, docs/benchmarks, of an M3 Ultra with a 27B model in four bits and its own
prediction head at depth 3; mlxcel, 2026-08-16, of an M1 Ultra), one is the machine that this was
written on (SmolLM2-135M in float32 on two cores with OpenBLAS), the others are shapes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from mlx_spec.control.pass_costs import EDGES, PassCosts
from mlx_spec.control.report import StepReport
from mlx_spec.control.step_prices import DraftPrice, StepPrices

DRAFTER = "model"


@dataclass(frozen=True)
class Machine:
    """What steps take.

    Attributes:
        name: in tables.
        verify: milliseconds of a pass over M tokens.
        draft: of one guess for B rows.
        packs: whether a pass takes any number of tokens from each row.
        edges: numbers of tokens that a calibration times.
    """

    name: str
    verify: Callable[[int], float]
    draft: Callable[[int], float]
    packs: bool = True
    edges: Seq[int] = EDGES

    def seconds(self, rows: int, tokens: int, passes: int) -> float:
        """Of a step that verifies ``tokens`` tokens after ``passes`` guesses for each row."""
        return self.verify(tokens) + passes * self.draft(rows)

    def prices(self) -> StepPrices:
        """Prices as a calibration finds them: points at the edges, lines between."""
        target, guess = PassCosts(), PassCosts()
        target.put({m: self.verify(m) for m in self.edges})
        if not self.packs:
            for width in (2, 3, 4, 6, 8):
                target.put({m: self.verify(m) for m in self.edges if m >= width}, width=width)
        guess.put({m: max(self.draft(m), 1e-6) for m in EDGES})
        return StepPrices(target, {DRAFTER: DraftPrice(guess)}, packs=self.packs)


class TruePrices(StepPrices):
    """What steps take, known beforehand and never corrected."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(PassCosts(), {}, packs=machine.packs)
        self._machine = machine
        self._padded: dict[tuple[int, int], int] = {}
        self._known: dict[tuple[int, int], list[float]] = {}

    def tokens(self, lengths: Seq[int]) -> int:
        rows = len(lengths)
        if not self.packs:
            return rows * (max(lengths, default=0) + 1)
        least = rows + sum(lengths)
        found = self._padded.get((rows, least))
        if found is not None:
            return found
        reach = range(least, max(least, 64) + least // 4 + 1)
        best = min(reach, key=lambda m: (self._machine.seconds(rows, m, 0), m))
        self._padded[rows, least] = best
        return best

    def verify(self, tokens: int, rows: int, keys: int = 0) -> float:
        return self._machine.seconds(rows, tokens, 0)

    def curve(self, rows: int, most: int, keys: int = 0) -> Seq[float]:
        if (rows, most) not in self._known:
            beyond = max(rows + most, 64) + (rows + most) // 4 + 1
            line = [self._machine.seconds(rows, m, 0) for m in range(rows, beyond)]
            if self.packs:
                for at in reversed(range(len(line) - 1)):
                    line[at] = min(line[at], line[at + 1])
            self._known[rows, most] = line[: most + 1]
        return self._known[rows, most]

    def draft(self, name: str, rows: int, passes: int) -> float:
        return self._machine.seconds(rows, rows, passes) - self._machine.seconds(rows, rows, 0)

    def drafts(self, name: str, rows: int, most: int) -> list[float]:
        return [self.draft(name, rows, passes) for passes in range(most + 1)]

    def risk(self, tokens: int) -> float:
        return 0.0

    def observe(self, report: StepReport) -> None:
        """Nothing is to be corrected."""


def points(table: Mapping[int, float]) -> Callable[[int], float]:
    """Milliseconds by tokens: lines between what was measured, and the last one's beyond."""
    known = sorted(table)

    def read(tokens: int) -> float:
        high = min(max(bisect_left(known, tokens), 1), len(known) - 1)
        a, b = known[high - 1], known[high]
        return table[a] + (table[b] - table[a]) * (tokens - a) / (b - a)

    return read


def tiles(size: int, base: float, each: float) -> Callable[[int], float]:
    """A staircase: so much for each tile that is begun."""
    return lambda m: base + each * math.ceil(m / size)


FLAT = Machine("flat", lambda m: 20 + 0.05 * m, lambda b: 1.5)
LINEAR = Machine("linear", lambda m: 2 + 2.0 * m, lambda b: 0.3 + 0.1 * b)
FIVES = tuple(sorted({*EDGES, *range(5, 100, 5), *range(6, 100, 5)}))
TILES_5 = Machine("tiles of 5", tiles(5, 14, 3.0), lambda b: 1.0, edges=FIVES)
TILES_32 = Machine("tiles of 32", tiles(32, 6, 16.0), lambda b: 1.2 + 0.02 * b)
COMPUTE = Machine("compute-bound", lambda m: max(20.0, 0.8 * m) + 1, lambda b: 1.5)
DEAR_DRAFT = Machine("dear draft", lambda m: 20 + 0.05 * m, lambda b: 12.0)
FREE_DRAFT = Machine("free draft", lambda m: 20 + 0.05 * m, lambda b: 0.0)
SQUARE = Machine("rectangles", tiles(8, 10, 6.0), lambda b: 1.0, packs=False)

# Measured here without context, as the head of that model drafts: about a fifth of a pass.
CPU = Machine(
    "2 cores",
    points(
        {
            1: 86,
            2: 99,
            4: 128,
            8: 132,
            12: 192,
            16: 127,
            18: 147,
            20: 190,
            24: 187,
            32: 172,
            48: 226,
        }
    ),
    points({1: 17, 4: 20, 16: 26, 32: 40, 64: 70}),
)

# The same model on two cores of another processor, where a key costs 0.01 ms.
INTEL = Machine(
    "2 other cores",
    points(
        {
            1: 95,
            2: 101,
            3: 107,
            4: 112,
            6: 118,
            8: 120,
            10: 131,
            12: 140,
            16: 145,
            18: 150,
            24: 165,
            32: 187,
            48: 210,
            64: 240,
            96: 350,
            128: 450,
        }
    ),
    points({1: 6, 4: 7, 16: 10, 32: 12, 64: 16}),
)
INTEL_KEY = 0.01


class CycleMachine(Machine):
    """Whole cycles by M, draft included, beside plain decoding by rows.

    However little is drafted, a cycle is priced as the published one of as many tokens, which
    drafted three each; so what is found here is the least that these figures allow.
    """

    def seconds(self, rows: int, tokens: int, passes: int) -> float:
        """A plain pass, or a cycle of as many tokens."""
        return self.draft(rows) if tokens == rows else self.verify(tokens)

    def prices(self) -> StepPrices:
        return TruePrices(self)


# Milliseconds of a cycle by 4 n tokens; of a plain step by n rows (n over published tokens a
# second). Up to 32 tokens are one tile of the quantized product; one more begins the next.
M3_ULTRA = CycleMachine(
    "M3 Ultra",
    points(
        {
            2: 38,
            3: 43,
            4: 49,
            8: 77,
            16: 123,
            24: 134,
            32: 136,
            33: 221,
            40: 221,
            48: 242,
            64: 233,
            96: 326,
            128: 415,
        }
    ),
    points(
        {
            1: 32.2,
            2: 34.5,
            4: 41.1,
            6: 55.5,
            8: 67.1,
            10: 78.2,
            12: 108.6,
            16: 111.2,
            24: 117.9,
            32: 117.6,
        }
    ),
)
M3_ULTRA_CHANCES = (0.87, 0.68, 0.53)
# Verification as published; of a guess what makes the published 0.70 of plain at depth 3.
M1_ULTRA = Machine("M1 Ultra", points({1: 43.6, 2: 75.7, 3: 106, 4: 135, 8: 244}), lambda b: 12.6)

SHAPES = (FLAT, LINEAR, TILES_5, TILES_32, COMPUTE, DEAR_DRAFT, FREE_DRAFT, SQUARE, CPU)
