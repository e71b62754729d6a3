"""``Simulation``: a policy plays a decoder on a simulated machine.

Like the real one it builds each step before it knows the result of the one before (a row that has
ended is computed once more, unless few are left), lets newcomers take the place of rows that ended,
and has a drafter that must read what it was not asked for. Time is what the machine says, with
seeded noise, so that every run is the same. ``Clairvoyant`` knows all chances and prices.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.control.allocation import Prices, best_budget, fill
from mlx_spec.control.report import StepReport
from mlx_spec.control.row import Evidence, room_of

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

    def reaching(self, most: int) -> list[float]:
        """Of the first ``most`` guesses, each with all before it."""
        reach, found = 1.0, []
        for guess in range(most):
            reach *= self.chance(guess)
            found.append(reach)
        return found


class Clairvoyant:
    """A policy that knows what each step costs and how likely each guess is."""

    def __init__(self, machine: Machine, most: int) -> None:
        self._prices, self._most = TruePrices(machine), most

    def choose(self, rows: Seq[SimulatedRow]) -> list[int]:
        """The step with the most expected tokens per second."""
        room = room_of(rows)
        reaching = [
            row.reaching(min(most, self._most)) for row, most in zip(rows, room, strict=True)
        ]
        count, longest = len(rows), max(map(len, reaching), default=0)
        draft = [self._prices.draft(DRAFTER, count, passes) for passes in range(longest + 1)]
        prices = Prices(self._prices.curve(count, count * longest), draft, self._prices.packs)
        best = best_budget(reaching, prices)
        if best.speed <= count / prices.verify[0]:
            return [0] * count
        return fill([row[: best.passes] for row in reaching], best, range(count))

    def observe(self, report: StepReport) -> None:
        """It knows."""

    def forget(self) -> None:
        """It keeps nothing."""


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
        seed: of everything random.
    """

    noise: float = 0.05
    catch_up: float = 0.0
    apart: bool = True
    dropping: bool = False
    delayed: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Played:
    """A step that was built: its rows and lengths, and what the drafter lacked before it."""

    rows: list[SimulatedRow]
    lengths: list[int]
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
        self._luck = random.Random(conditions.seed + 1)
        self.rows = [self._newcomer() for _ in range(workload.rows)]
        self._ahead: Played | None = None  # the next step, if it was built

    def _newcomer(self) -> SimulatedRow:
        work, rng = self.workload, self._random
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
            self._ahead = self._build() if self._conditions.delayed else None
            self._finish(step)
            if self._ahead is not None and self._to_drop(self._ahead):
                for row, lag in zip(self._ahead.rows, self._ahead.lags, strict=True):
                    row.lag = lag
                self._ahead = None
                self.policy.forget()
        return self.run

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
        lags, drafts = [row.lag for row in rows], any(lengths)
        unread = sum(lag > RIDES for lag in lags) if drafts else 0
        for row in rows:
            row.lag = 2 if drafts else row.lag + 1
        return Played(rows, lengths, unread, lags)

    def _finish(self, step: Played) -> None:
        """Time and tokens of one step."""
        rows, lengths, conditions = step.rows, step.lengths, self._conditions
        passes = max(lengths)
        tokens = self._true.tokens(lengths)
        seconds = self.machine.seconds(len(rows), tokens, passes)
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
            expected += 1 + sum(row.reaching(length))
            accepted.append(self._accept(row, length))
            emitted += row.emit(accepted[-1] + 1)
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
                passes={DRAFTER: passes} if passes else {},
            )
        )
        self.run.lengths.append(lengths)
        self.run.seconds.append(seconds + reading)
        self.run.tokens.append(emitted)
        self.run.expected.append(expected)

    def _accept(self, row: SimulatedRow, length: int) -> int:
        run = 0
        while run < length and self._luck.random() < row.chance(run):
            run += 1
        return run

    def _change_members(self) -> None:
        """Rows that ended give way to newcomers, or leave."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].remaining:
                continue
            if self.workload.replace:
                self.rows[i] = self._newcomer()
            else:
                del self.rows[i]
