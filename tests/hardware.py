"""Simulated hardware for draft-length policies: a step's cost and acceptance without a clock.

``Simulation`` plays a decoder around a policy. Like the real one it builds each step before it
knows the result of the one before (a row that has ended is computed once more, unless few are
left), lets newcomers take the place of rows that ended, and has a drafter that must catch up after
plain steps. Time is what ``Hardware`` says, optionally with seeded noise, so that every run is the
same.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Evidence
from mlx_spec.decoding.drafters.model import MAX_RIDE

FOREVER = 10**9
MOST = 6  # draft tokens, where a test says nothing else
FIRST_STEPS = 300


def adaptive(most: int = MOST, **options: Any) -> AdaptiveDraftLength:
    """A policy that knows nothing yet."""
    return AdaptiveDraftLength(SpeculationConfig(num_draft_tokens=most, **options))


@dataclass(eq=False)
class SimulatedRow:
    """All that control sees of a request."""

    remaining: int
    evidence: Evidence | None = None

    def emit(self, tokens: int) -> int:
        """Take as many of these tokens as it may still emit; return how many."""
        taken = min(tokens, self.remaining)
        self.remaining -= taken
        return taken


def make_rows(*remaining: int) -> list[SimulatedRow]:
    """Rows that may emit so many tokens."""
    return [SimulatedRow(count) for count in remaining]


@dataclass(frozen=True)
class Hardware:
    """Seconds of a step: ``verify(M)`` for M = B (K + 1) tokens and ``draft(B)`` a draft token."""

    name: str
    verify: Callable[[int], float]
    draft: Callable[[int], float]

    def seconds(self, rows: int, length: int) -> float:
        return self.verify(rows * (length + 1)) + length * self.draft(rows)

    def goodput(self, chances: list[float], length: int) -> float:
        """True tokens per second of endless rows at a fixed draft length."""
        return expected_tokens(chances, length) / self.seconds(len(chances), length)

    def best(self, chances: list[float], most: int) -> tuple[int, float]:
        """The best draft length of 0..most, and its goodput."""
        return max(
            ((length, self.goodput(chances, length)) for length in range(most + 1)),
            key=lambda pair: pair[1],
        )


def expected_tokens(chances: list[float], length: int) -> float:
    """Tokens that a step emits on average: ``1 + a + ... + a**K`` for each row."""
    return sum(sum(chance**i for i in range(length + 1)) for chance in chances)


# Seconds are milliseconds a big model might take; only ratios matter.
MEMORY_BOUND = Hardware("memory bound", lambda m: 20 + 0.05 * m, lambda b: 1.5)
LINEAR = Hardware("linear", lambda m: 2 + 2.0 * m, lambda b: 0.3 + 0.1 * b)
STAIRCASE = Hardware("staircase", lambda m: 10 + 6.0 * math.ceil(m / 8), lambda b: 1.0)
DEAR_DRAFT = Hardware("dear draft", lambda m: 20 + 0.05 * m, lambda b: 12.0)
FREE_DRAFT = Hardware("free draft", lambda m: 20 + 0.05 * m, lambda b: 0.0)
ROOFLINE = Hardware("roofline", lambda m: max(20.0, 0.8 * m) + 1, lambda b: 1.5)
ALL = (MEMORY_BOUND, LINEAR, STAIRCASE, DEAR_DRAFT, FREE_DRAFT, ROOFLINE)


def named(hardware: Hardware) -> str:
    """As tests call it."""
    return hardware.name


@dataclass
class Run:
    """What a simulated run did.

    Attributes:
        lengths: longest draft of each step.
        seconds: true average time of each step, without noise and outliers.
        tokens: emitted tokens of each step.
        expected: tokens that each step would emit on average, if no row ended.
    """

    lengths: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def goodput(self, first: int = 0, last: int | None = None) -> float:
        """Tokens per second over steps ``first .. last - 1``."""
        return sum(self.tokens[first:last]) / sum(self.seconds[first:last])

    def merit(self, first: int = 0, last: int | None = None) -> float:
        """The same for endless rows, without the luck of what was accepted."""
        return sum(self.expected[first:last]) / sum(self.seconds[first:last])

    def share_drafting(self, first: int = 0) -> float:
        """Share of steps with a draft."""
        lengths = self.lengths[first:]
        return sum(length > 0 for length in lengths) / len(lengths)

    def usual(self, first: int = 0) -> int:
        """The draft length used most often."""
        return Counter(self.lengths[first:]).most_common(1)[0][0]


@dataclass(frozen=True)
class Step:
    """A step that was built: its rows, their acceptance and lengths, and the lag of before."""

    rows: list[SimulatedRow]
    chances: list[float]
    lengths: list[int]
    clean: bool
    lag: list[int]


class Simulation:
    """Rows on simulated hardware, step by step.

    Args:
        policy: the policy under test.
        hardware: what a step costs; may be exchanged while it runs.
        chances: acceptance of each row's draft tokens; may be changed while it runs.
        noise: relative standard deviation of a step's time.
        new_tokens: tokens a row emits before another takes its place (None: endless rows).
        replace: whether newcomers follow rows that ended.
        lagging: the drafter must catch up after plain steps, as ``ModelDrafter`` does.
        catch_up: what that costs, in passes of the drafter.
        apart: what the drafter reads is measured apart from the step, as ``StepReport.reading``.
        dropping: drop a step built ahead as soon as a row has ended, instead of computing that
            row once more past its end.
        delayed: like the decoder, build each step before the one before is known.
        seed: of everything random.
    """

    def __init__(
        self,
        policy: Any,
        hardware: Hardware,
        chances: list[float],
        *,
        noise: float = 0.0,
        new_tokens: Callable[[random.Random], int] | None = None,
        replace: bool = True,
        lagging: bool = True,
        catch_up: float = 3.0,
        apart: bool = False,
        dropping: bool = False,
        delayed: bool = True,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.hardware = hardware
        self.chances = chances
        self.noise = noise
        self.run = Run()
        self.outliers: dict[int, float] = {}  # step -> factor on its measured time
        self._new_tokens = new_tokens
        self._replace = replace
        self._lagging = lagging
        self._catch_up = catch_up
        self._apart = apart
        self._dropping = dropping
        self._delayed = delayed
        self._random = random.Random(seed)
        self.rows = [self._make_row() for _ in chances]
        self._lag = [FOREVER] * len(chances)
        self._joined = True
        self._ahead: Step | None = None  # the next step, if it was built

    def _make_row(self) -> SimulatedRow:
        return SimulatedRow(self._new_tokens(self._random) if self._new_tokens else FOREVER)

    def steps(self, count: int) -> Run:
        """Run ``count`` steps, or until no row is left."""
        for _ in range(count):
            step = self._ahead or self._build()
            if step is None:
                break
            self._ahead = self._build() if self._delayed else None
            self._finish_step(step)
            if self._ahead is not None and self._to_drop(self._ahead):
                self._lag = self._ahead.lag
                self._ahead = None
                self.policy.forget()
        return self.run

    def _to_drop(self, ahead: Step) -> bool:
        """Whether a step built ahead is better not launched, now that the one before is known."""
        alive = sum(row.remaining > 0 for row in ahead.rows)
        return alive < len(ahead.rows) if self._dropping else 2 * alive <= len(ahead.rows)

    def _build(self) -> Step | None:
        self._change_members()
        if not self.rows:
            return None
        lengths = self.policy.choose(self.rows)
        assert len(lengths) == len(self.rows)
        assert min(lengths) >= 0
        # What the decoder cannot know yet is the one exception to "no draft past the end".
        assert all(
            n <= max(0, row.remaining - 1) for n, row in zip(lengths, self.rows, strict=True)
        )
        ready = not self._lagging or max(self._lag) <= MAX_RIDE
        clean = not max(lengths) or (ready and not self._joined)
        self._joined = False
        lag, self._lag = self._lag, [2 if max(lengths) else lag + 1 for lag in self._lag]
        return Step(list(self.rows), list(self.chances), lengths, clean, lag)

    def _finish_step(self, step: Step) -> None:
        """Time and tokens of one step."""
        count, longest = len(step.lengths), max(step.lengths)
        seconds = self.hardware.seconds(count, longest)
        reading = 0.0 if step.clean else self._catch_up * self.hardware.draft(count)
        slower = self.outliers.get(len(self.run.seconds), 1.0)
        if self.noise:
            slower *= self._random.lognormvariate(0, self.noise)
        accepted, emitted, chances = [], 0, []
        for row, chance, length in zip(step.rows, step.chances, step.lengths, strict=True):
            if not row.remaining:
                accepted.append(-1)
                continue
            accepted.append(self._accept(chance, length))
            emitted += row.emit(accepted[-1] + 1)
            chances.append(chance)
        if self._apart:
            measured = (slower * seconds, True, slower * reading)
        else:
            measured = (slower * (seconds + reading), step.clean, 0.0)
        self.policy.observe(StepReport(step.rows, step.lengths, accepted, *measured))
        self.run.lengths.append(longest)
        self.run.seconds.append(seconds + reading)
        self.run.tokens.append(emitted)
        self.run.expected.append(expected_tokens(chances, longest))

    def _accept(self, chance: float, length: int) -> int:
        run = 0
        while run < length and self._random.random() < chance:
            run += 1
        return run

    def _change_members(self) -> None:
        """Rows that ended give way to newcomers, or leave."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].remaining:
                continue
            if self._replace:
                self.rows[i], self._lag[i] = self._make_row(), FOREVER
                self._joined = True
            else:
                del self.rows[i], self.chances[i], self._lag[i]
