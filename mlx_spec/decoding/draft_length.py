"""How far to guess: the draft length K of each step, from measured cost and acceptance.

A step with draft length K costs T(B, K) seconds for B rows and emits, for a row whose draft
tokens are accepted with chance a, ``1 + a + a**2 + ... + a**K`` tokens. ``AdaptiveDraftLength``
keeps both measured and picks the K with the most tokens per second, K = 0 (plain decoding)
included; so speculation stops where it does not pay and returns where it does.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from mlx_spec.config import SpeculationConfig
from mlx_spec.decoding.memory import PairMemory
from mlx_spec.sequence import Sequence


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        rows: the sequences that took part, in row order.
        lengths: draft length of each row.
        accepted: accepted draft tokens of each row.
        seconds: launch of the step to its result on the host.
        clean: False if the step also did other work (a drafter catching up), so that its time
            says nothing about the next one.
    """

    rows: Seq[Sequence]
    lengths: Seq[int]
    accepted: Seq[int]
    seconds: float
    clean: bool


class DraftLengthPolicy(Protocol):
    """Chooses each row's draft length and learns from what came of it."""

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        """Draft length of each row for the next step."""
        ...

    def observe(self, report: StepReport) -> None:
        """Learn from a finished step."""
        ...

    def forget(self) -> None:
        """The step of the last choice was dropped before it was launched."""
        ...


class FixedDraftLength:
    """The same draft length for every row and step, less only where a row is about to end."""

    def __init__(self, length: int) -> None:
        self.length = length

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        """``length``, or what the row may still emit less the bonus token."""
        return cap_lengths(rows, self.length)

    def observe(self, report: StepReport) -> None:
        """Nothing to learn."""

    def forget(self) -> None:
        """Nothing to undo."""


def cap_lengths(rows: Seq[Sequence], length: int) -> list[int]:
    """``length`` for each row, but no draft token past a row's last possible one."""
    return [max(0, min(length, row.remaining - 1)) for row in rows]


class AcceptanceEstimate:
    """Chance that a draft token is accepted, per sequence, leaning on the average of all.

    Only positions really tested count: with a accepted of k drafted, min(a + 1, k) were tested
    and nothing is known of those past the first rejection.
    """

    MEMORY = 0.9  # share of a row's past evidence that each step keeps
    SHARED_MEMORY = 0.98
    # While nothing is drafted, old evidence fades: texts change, and a probe must be heard.
    FADING = 0.99
    SHARED_FADING = 0.995
    LEAST_EVIDENCE = 1.0
    PRIOR_TOKENS = 3.0  # how many tested tokens the average of all weighs

    def __init__(self, memory: PairMemory) -> None:
        self._rows: WeakKeyDictionary[Sequence, tuple[float, float]] = WeakKeyDictionary()
        self._memory = memory

    def observe(self, report: StepReport) -> None:
        """Count what one step tested."""
        if max(report.lengths) == 0:
            self._fade(report.rows)
            return
        total_accepted = total_tested = 0
        for row, length, accepted in zip(report.rows, report.lengths, report.accepted, strict=True):
            tested = min(accepted + 1, length)
            if tested:
                past = self._rows.get(row, (0.0, 0.0))
                self._rows[row] = (
                    self.MEMORY * past[0] + accepted,
                    self.MEMORY * past[1] + tested,
                )
                total_accepted += accepted
                total_tested += tested
        if total_tested:
            weight = 1 / len(report.rows)  # a wide batch must not forget faster
            keep = self.SHARED_MEMORY
            self._memory.accepted = keep * self._memory.accepted + weight * total_accepted
            self._memory.tested = keep * self._memory.tested + weight * total_tested

    def _fade(self, rows: Seq[Sequence]) -> None:
        for row in rows:
            if row in self._rows:
                accepted, tested = self._rows[row]
                self._rows[row] = (self.FADING * accepted, self.FADING * tested)
        if self._memory.tested > self.LEAST_EVIDENCE:
            self._memory.accepted *= self.SHARED_FADING
            self._memory.tested *= self.SHARED_FADING

    def chance(self, row: Sequence) -> float:
        """Estimated acceptance of one row's next draft token, in [0, 1]."""
        average = self._memory.accepted / self._memory.tested
        accepted, tested = self._rows.get(row, (0.0, 0.0))
        return (accepted + self.PRIOR_TOKENS * average) / (tested + self.PRIOR_TOKENS)

    def expected_tokens(self, rows: Seq[Sequence], length: int) -> float:
        """Tokens that one step with draft length ``length`` is expected to emit."""
        total = 0.0
        for row, cap in zip(rows, cap_lengths(rows, length), strict=True):
            chance, run = self.chance(row), 1.0
            total += 1.0
            for _ in range(cap):
                run *= chance
                total += run
        return total


class JoinCost:
    """What reading newcomers' texts adds to a draft step, spread over all steps.

    A drafter reads a row's text before the row's first draft, in that step or over some steps.
    Where rows come and go quickly that is a large part of what drafting costs, and no single
    step's price shows it.
    """

    NEWEST = 0.05  # share of the newest step in the rate of joining
    NEWEST_COST = 0.3
    MOST = 5.0  # a step counts as at most this times the usual one more

    def __init__(self, memory: PairMemory) -> None:
        self._memory = memory
        self._met: WeakKeyDictionary[Sequence, bool] = WeakKeyDictionary()  # -> was it drafted for
        self._rate = 0.0
        self._spent = 0.0  # on texts that are still being read

    @property
    def seconds(self) -> float:
        """Expected extra seconds of a step with a draft."""
        return self._rate * self._memory.join_seconds

    def reading(self, rows: Seq[Sequence]) -> float:
        """Seconds to read those of ``rows`` that were never drafted for."""
        return self._memory.join_seconds * sum(not self._met.get(row) for row in rows)

    def observe(self, report: StepReport, usual: float | None) -> None:
        """Learn from one step; ``usual`` is what such a step costs without newcomers."""
        new = [row for row in report.rows if row not in self._met]
        self._rate += self.NEWEST * (len(new) - self._rate)
        for row in new:
            self._met[row] = False
        if report.clean:
            self._spent = 0.0
        elif usual:
            self._spent += min(max(report.seconds - usual, 0.0), self.MOST * usual)
        read = [
            row
            for row, length in zip(report.rows, report.lengths, strict=True)
            if length and not self._met[row]
        ]
        for row in read:
            self._met[row] = True
        if read and self._spent:
            extra, self._spent = self._spent / len(read), 0.0
            weight = self.NEWEST_COST if self._memory.join_seconds else 1.0
            self._memory.join_seconds += weight * (extra - self._memory.join_seconds)


class AdaptiveDraftLength:
    """Picks the draft length with the best predicted goodput, 0 included.

    All rows of a step share one K, because a rectangular verify pass costs the same for a row
    that uses less of it. With a new pair it starts with a few steps at K = 2 and K = 0 to learn
    what they cost, goes on with the K that promises most, and refreshes what it knows of the
    others by an occasional single step. Parked at 0 it tries again after ``probe_interval``
    steps, or later where trying is so dear that it would cost more than ``PROBE_SHARE`` of the
    time.

    Args:
        config: maximum draft length, hysteresis and probe interval.
        memory: what is known of the pair already; learns more here.
    """

    # Each measured twice, so that one hiccup decides nothing; the first draft of newcomers also
    # reads their prompts.
    START_LENGTHS = (2, 2, 2, 0, 0)
    REFRESH_EVERY = 24
    FILL_EVERY = 8  # while a neighbour was measured less than
    ENOUGH = 3  # times
    PROBE_STEPS = 2  # the first brings a lagging drafter up to date
    PROBE_SHARE = 0.01
    LONGEST_PROBE_FACTOR = 16

    def __init__(self, config: SpeculationConfig, memory: PairMemory | None = None) -> None:
        self.config = config
        self._memory = memory or PairMemory()
        self.costs = self._memory.costs
        self.acceptance = AcceptanceEstimate(self._memory)
        self._joins = JoinCost(self._memory)
        self._plan = [] if self.costs.comparable else list(self.START_LENGTHS)
        if self._memory.length is None:
            self._memory.length = min(2, config.num_draft_tokens)
        self._undo: tuple[list[int], int | None, int] = ([], self._memory.length, 0)

    @property
    def current(self) -> int:
        """The draft length in use when nothing is being tried."""
        return min(self._memory.length or 0, self.config.num_draft_tokens)

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        """One K for all rows, less only where a row is about to end."""
        self._undo = (list(self._plan), self._memory.length, self._memory.since)
        longest = min(
            self.config.num_draft_tokens, max((row.remaining - 1 for row in rows), default=0)
        )
        if longest <= 0:
            return [0] * len(rows)
        if not self._plan:
            self._decide(rows, longest)
        length = self._plan.pop(0) if self._plan else self.current
        return cap_lengths(rows, min(length, longest))

    def forget(self) -> None:
        """Put the plan back as it was before the last choice."""
        plan, self._memory.length, self._memory.since = self._undo
        self._plan = list(plan)

    def observe(self, report: StepReport) -> None:
        """Learn cost and acceptance from a finished step."""
        self.acceptance.observe(report)
        batch, length = len(report.rows), max(report.lengths)
        self._joins.observe(report, self.costs.predict(batch, length))
        self.costs.record(batch, length, report.seconds, clean=report.clean)

    def goodput(self, rows: Seq[Sequence], length: int) -> float:
        """Predicted tokens per second of steps with draft length ``length``."""
        seconds = self.costs.predict(len(rows), length)
        if not seconds:
            return 0.0
        if length:
            seconds += self._joins.seconds
        return self.acceptance.expected_tokens(rows, length) / seconds

    def _decide(self, rows: Seq[Sequence], longest: int) -> None:
        """Settle on a K for now; plan a refresh or a probe when one is due."""
        memory = self._memory
        memory.since += 1
        goodput = {length: self.goodput(rows, length) for length in range(longest + 1)}
        best = max(goodput, key=lambda length: goodput[length])
        current = min(self.current, longest)
        if goodput[best] > (1 + self.config.hysteresis) * goodput[current]:
            memory.length, memory.since = best, 0
        elif self.current > 0:
            self._refresh(len(rows), current, longest)
        elif memory.since >= self.config.probe_interval or self._unknown(len(rows)):
            self._probe(rows, goodput)

    def _probe(self, rows: Seq[Sequence], goodput: dict[int, float]) -> None:
        """Try speculation again, if it was left alone for long enough to afford it."""
        drafting = {length: value for length, value in goodput.items() if length}
        length = max(drafting, key=lambda length: drafting[length])
        # Two tokens tell more than one, where they cost little more.
        if drafting.get(2, 0.0) > 0.8 * drafting[length]:
            length = max(length, 2)
        longest = self.LONGEST_PROBE_FACTOR * self.config.probe_interval
        wait = min(longest, self._probe_price(rows, length) / self.PROBE_SHARE)
        if self._memory.since >= wait or self._unknown(len(rows)):
            self._plan = [length] * self.PROBE_STEPS
            self._memory.since = 0

    def _unknown(self, batch: int) -> bool:
        """Whether no draft was ever timed at this batch size: then a guess stands for it."""
        lengths = range(1, self.config.num_draft_tokens + 1)
        return not any(self.costs.count(batch, length) for length in lengths)

    def _probe_price(self, rows: Seq[Sequence], length: int) -> float:
        """What a probe loses if nothing is accepted, in plain steps."""
        plain, drafting = (self.costs.predict(len(rows), k) for k in (0, length))
        if not plain or not drafting:
            return 0.0
        lost = self.PROBE_STEPS * max(0.0, drafting / plain - 1.0)
        return lost + self._joins.reading(rows) / plain

    def _refresh(self, batch: int, current: int, longest: int) -> None:
        """Now and then one step at a neighbouring K or at 0, the least measured one first."""
        others = (0, min(current + 1, longest), max(current - 1, 1))
        counts = [self.costs.count(batch, length) for length in others]
        thin = min(counts) < self.ENOUGH
        if self._memory.since % (self.FILL_EVERY if thin else self.REFRESH_EVERY) == 0:
            turn = self._memory.since // self.REFRESH_EVERY % len(others)
            self._plan = [others[counts.index(min(counts)) if thin else turn]]
