"""``Simulation``: a policy plays a decoder on a simulated machine.

Like the real one it builds each step before it knows the result of the one before (a row that has
ended is computed once more, unless few are left), lets newcomers take the place of rows that ended,
and has a drafter that must read what it was not asked for and that may say how sure it is. Time is
what the machine says, with seeded noise, so that every run is the same.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Evidence

from .machines import DRAFTER, Machine, TruePrices
from .texts import Text, Workload

FOREVER = 10**9
RIDES = 8  # tokens that a drafter reads with its first guess


@dataclass(eq=False)
class SimulatedRow:
    """All that control sees of a request, and the text that it does not."""

    remaining: int
    text: Text = lambda said: (0.0,)
    length: int = 32
    evidence: Evidence | None = None
    said: int = 0
    lag: int = FOREVER  # tokens that the drafter has not read
    brings_guesses: bool = False

    @property
    def room(self) -> int:
        """The most guesses that it can use."""
        return max(0, self.remaining - 1)

    def emit(self, tokens: int) -> int:
        """Take as many of these tokens as it may still emit; return how many."""
        taken = min(tokens, self.remaining)
        self.remaining -= taken
        self.said += taken
        self.length += taken
        return taken

    def chance(self, guess: int) -> float:
        """Of the guess, 0 the first, if those before it stand."""
        chances = self.text(self.said)
        return chances[min(guess, len(chances) - 1)]

    def guessed(self, length: int, luck: random.Random) -> tuple[float, int]:
        """Of a draft: tokens that it brings on average, and how many of it stood this time."""
        chances = self.text(self.said)
        last, reach, brings, stood = len(chances) - 1, 1.0, 0.0, 0
        for guess in range(length):
            chance = chances[guess if guess < last else last]
            reach *= chance
            brings += reach
            if stood == guess and luck.random() < chance:
                stood += 1
        return brings, stood

    def reaching(self, most: int) -> list[float]:
        """Of the first ``most`` guesses, each with all before it."""
        reach, found = 1.0, []
        for guess in range(most):
            reach *= self.chance(guess)
            found.append(reach)
        return found


@dataclass
class Run:
    """What a simulated run did.

    Attributes:
        lengths: guesses of each row, of each step.
        seconds: true average time of each step, without noise and outliers.
        tokens: emitted tokens of each step.
        expected: tokens that each step would emit on average, if no row ended.
    """

    lengths: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def goodput(self, first: int = 0, last: int | None = None) -> float:
        """Tokens per second over steps ``first .. last - 1``."""
        return sum(self.tokens[first:last]) / sum(self.seconds[first:last])

    def merit(self, first: int = 0, last: int | None = None) -> float:
        """The same for endless rows, without the luck of what was accepted."""
        return sum(self.expected[first:last]) / sum(self.seconds[first:last])

    def passes(self, first: int = 0) -> list[int]:
        """The longest draft of each step."""
        return [max(lengths) for lengths in self.lengths[first:]]

    def share_drafting(self, first: int = 0) -> float:
        """Share of steps with a draft."""
        passes = self.passes(first)
        return sum(length > 0 for length in passes) / len(passes)

    def usual(self, first: int = 0) -> int:
        """The longest draft used most often."""
        return Counter(self.passes(first)).most_common(1)[0][0]

    @property
    def switches(self) -> int:
        """How often drafting began or ended."""
        passes = self.passes()
        return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(passes))


@dataclass(frozen=True)
class Conditions:
    """What makes a simulation harder than its average.

    Attributes:
        noise: relative standard deviation of a step's time.
        catch_up: what reading a newcomer's text costs the drafter, in its passes; 0 for one that
            reads what the target reads.
        apart: what the drafter reads is measured apart from the step, as ``StepReport.reading``.
        dropping: drop a step built ahead as soon as a row has ended, instead of computing that
            row once more past its end.
        delayed: like the decoder, build each step before the one before is known.
        says: how probable the drafter says that a guess is which stands with that chance; None: it
            says nothing.
        seed: of everything random.
    """

    noise: float = 0.05
    catch_up: float = 0.0
    apart: bool = True
    dropping: bool = False
    delayed: bool = True
    says: Callable[[float], float] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Played:
    """A step that was built: its rows and lengths, the drafter's passes, and what it lacked."""

    rows: list[SimulatedRow]
    lengths: list[int]
    passes: int
    unread: int
    lags: list[int]


class Simulation:
    """Rows on a simulated machine, step by step.

    Args:
        policy: the policy under test.
        machine: what a step costs.
        workload: rows and their texts.
        conditions: noise, and what a drafter costs beside its guesses.
    """

    def __init__(
        self,
        policy: Any,
        machine: Machine,
        workload: Workload,
        conditions: Conditions = Conditions(),
    ) -> None:
        self.policy, self.workload = policy, workload
        self.exchange(machine)
        self.run = Run()
        self.outliers: dict[int, float] = {}  # step -> factor on its measured time
        self._conditions = conditions
        self._random = random.Random(conditions.seed)
        self._luck, self._arrived = random.Random(conditions.seed + 1), 0
        self.rows = [self._newcomer() for _ in range(workload.rows)]
        self._ahead: Played | None = None  # the next step, if it was built

    def _newcomer(self) -> SimulatedRow:
        # The same texts in the same order, whatever the policy makes of them.
        self._arrived += 1
        work, rng = self.workload, random.Random(f"{self._conditions.seed} {self._arrived}")
        tokens = work.tokens(rng) if work.tokens else FOREVER
        return SimulatedRow(tokens, work.text(rng), work.prompt)

    def exchange(self, machine: Machine) -> None:
        """Go on with another machine."""
        self.machine, self._true = machine, TruePrices(machine)

    def steps(self, count: int) -> Run:
        """Run ``count`` steps, or until no row is left."""
        for _ in range(count):
            step = self._ahead or self._build()
            if step is None:
                break
            self._ahead = self._build() if self._conditions.delayed and not self._reads else None
            self._finish(step)
            if self._ahead is not None and self._to_drop(self._ahead):
                for row, lag in zip(self._ahead.rows, self._ahead.lags, strict=True):
                    row.lag = lag
                self._ahead = None
                self.policy.forget()
        return self.run

    @property
    def _reads(self) -> bool:
        """Whether guesses of the next step are picked by what the drafter says of them."""
        return self._conditions.says is not None and getattr(self.policy, "picks", False)

    def _read(self, rows: list[SimulatedRow]) -> tuple[list[int], int]:
        """Guesses that are verified of those that are made one after the other, and how many."""
        assert self._conditions.says is not None
        settled = self.policy.settle(rows, [], [True] * len(rows))
        most = max(settled.lengths)
        if not (settled.reads and most):
            return settled.lengths, most
        said = [[self._conditions.says(row.chance(n)) for n in range(most)] for row in rows]
        made = 1
        while made < most and not self.policy.enough(rows, [row[:made] for row in said]):
            made += 1
        return self.policy.pick(rows, [row[:made] for row in said]), made

    def _to_drop(self, ahead: Played) -> bool:
        """Whether a step built ahead is better not launched, now that the one before is known."""
        alive = sum(row.remaining > 0 for row in ahead.rows)
        return (
            alive < len(ahead.rows) if self._conditions.dropping else 2 * alive <= len(ahead.rows)
        )

    def _build(self) -> Played | None:
        self._change_members()
        rows = list(self.rows)
        if not rows:
            return None
        lengths = self.policy.choose(rows)
        assert len(lengths) == len(rows)
        assert min(lengths) >= 0
        # What the decoder cannot know yet is the one exception to "no draft past the end".
        assert all(n <= max(0, row.remaining - 1) for n, row in zip(lengths, rows, strict=True))
        passes = max(lengths)
        if passes and self._reads:
            lengths, passes = self._read(rows)
        lags, drafts = [row.lag for row in rows], passes > 0
        unread = sum(lag > RIDES for lag in lags) if drafts else 0
        for row in rows:
            row.lag = 2 if drafts else row.lag + 1
        return Played(rows, lengths, passes, unread, lags)

    def _finish(self, step: Played) -> None:
        """Time and tokens of one step."""
        rows, lengths, conditions = step.rows, step.lengths, self._conditions
        tokens = self._true.tokens(lengths)
        seconds = self.machine.seconds(len(rows), tokens, step.passes)
        reading = 0.0
        if step.unread and conditions.catch_up:
            reading = conditions.catch_up * self.machine.draft(step.unread)
        slower = self.outliers.get(len(self.run.seconds), 1.0)
        if conditions.noise:
            slower *= self._random.lognormvariate(0, conditions.noise)
        accepted, emitted, expected = [], 0, 0.0
        for row, length in zip(rows, lengths, strict=True):
            if not row.remaining:
                accepted.append(-1)
                continue
            brings, stood = row.guessed(length, self._luck)
            expected += 1 + brings
            accepted.append(stood)
            emitted += row.emit(stood + 1)
        apart = conditions.apart or not reading
        self.policy.observe(
            StepReport(
                rows,
                lengths,
                accepted,
                slower * (seconds if apart else seconds + reading),
                clean=apart,
                reading=slower * reading if apart else 0.0,
                tokens=tokens,
                passes={DRAFTER: step.passes} if step.passes else {},
            )
        )
        self.run.lengths.append(lengths)
        self.run.seconds.append(seconds + reading)
        self.run.tokens.append(emitted)
        self.run.expected.append(expected)

    def _change_members(self) -> None:
        """Rows that ended give way to newcomers, or leave."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].remaining:
                continue
            if self.workload.replace:
                self.rows[i] = self._newcomer()
            else:
                del self.rows[i]
