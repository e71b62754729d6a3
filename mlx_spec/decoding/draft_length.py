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


class FixedDraftLength:
    """The same draft length for every row and step, less only where a row is about to end."""

    def __init__(self, length: int) -> None:
        self.length = length

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        """``length``, or what the row may still emit less the bonus token."""
        return cap_lengths(rows, self.length)

    def observe(self, report: StepReport) -> None:
        """Nothing to learn."""


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


class AdaptiveDraftLength:
    """Picks the draft length with the best predicted goodput, 0 included.

    All rows of a step share one K, because a rectangular verify pass costs the same for a row
    that uses less of it. With a new pair it starts with a few steps at K = 2 and K = 0 to learn
    what they cost, goes on with the K that promises most, and refreshes what it knows of the
    others by an occasional single step. Parked at 0 it tries again after ``probe_interval``
    steps, later after up to 16 times as many.

    Args:
        config: maximum draft length, hysteresis and probe interval.
        memory: what is known of the pair already; learns more here.
    """

    # Each measured twice, so that one hiccup decides nothing; the first draft of newcomers also
    # reads their prompts and is not timed.
    START_LENGTHS = (2, 2, 2, 0, 0)
    REFRESH_EVERY = 24
    FILL_EVERY = 8  # while a neighbour was measured less than
    ENOUGH = 3  # times
    PROBE_STEPS = 2  # the first brings a lagging drafter up to date and is not timed
    LONGEST_PROBE_FACTOR = 16
    PROBE_SHARE = 0.01  # most of the time that probes may cost while parked

    def __init__(self, config: SpeculationConfig, memory: PairMemory | None = None) -> None:
        self.config = config
        self._memory = memory or PairMemory()
        self.costs = self._memory.costs
        self.acceptance = AcceptanceEstimate(self._memory)
        self._plan = [] if self.costs.comparable else list(self.START_LENGTHS)
        if self._memory.length is None:
            self._memory.length = min(2, config.num_draft_tokens)
        if self._memory.patience is None:
            self._memory.patience = config.probe_interval

    @property
    def current(self) -> int:
        """The draft length in use when nothing is being tried."""
        return min(self._memory.length or 0, self.config.num_draft_tokens)

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        """One K for all rows, less only where a row is about to end."""
        longest = min(
            self.config.num_draft_tokens, max((row.remaining - 1 for row in rows), default=0)
        )
        if longest <= 0:
            return [0] * len(rows)
        if not self._plan:
            self._decide(rows, longest)
        length = self._plan.pop(0) if self._plan else self.current
        return cap_lengths(rows, min(length, longest))

    def observe(self, report: StepReport) -> None:
        """Learn cost and acceptance from a finished step."""
        self.acceptance.observe(report)
        if report.clean:
            self.costs.record(len(report.rows), max(report.lengths), report.seconds)

    def goodput(self, rows: Seq[Sequence], length: int) -> float:
        """Predicted tokens per second of a step with draft length ``length``."""
        seconds = self.costs.predict(len(rows), length)
        return self.acceptance.expected_tokens(rows, length) / seconds if seconds else 0.0

    def _decide(self, rows: Seq[Sequence], longest: int) -> None:
        """Settle on a K for now; plan a refresh or a probe when one is due."""
        memory = self._memory
        memory.since += 1
        goodput = {length: self.goodput(rows, length) for length in range(longest + 1)}
        best = max(goodput, key=lambda length: goodput[length])
        current = min(self.current, longest)
        if goodput[best] > (1 + self.config.hysteresis) * goodput[current]:
            memory.length, memory.since = best, 0
            if best > 0:
                memory.patience = self.config.probe_interval
        elif self.current == 0 and memory.since >= (memory.patience or 0):
            drafting = max(range(1, longest + 1), key=lambda length: goodput[length])
            limit = self.LONGEST_PROBE_FACTOR * self.config.probe_interval
            if memory.since >= min(limit, self._probe_price(rows, drafting) / self.PROBE_SHARE):
                self._plan = [drafting] * self.PROBE_STEPS
                memory.since = 0
                memory.patience = min(2 * (memory.patience or 1), limit)
        elif self.current > 0:
            self._refresh(len(rows), current, longest)

    def _probe_price(self, rows: Seq[Sequence], length: int) -> float:
        """What a probe is expected to lose, in plain steps."""
        plain, drafting = (self.costs.predict(len(rows), k) for k in (0, length))
        if not plain or not drafting:
            return 0.0
        gained = self.acceptance.expected_tokens(rows, length) / len(rows)
        return self.PROBE_STEPS * max(0.0, drafting / plain - gained)

    def _refresh(self, batch: int, current: int, longest: int) -> None:
        """Now and then one step at a neighbouring K or at 0, the least measured one first."""
        others = (0, min(current + 1, longest), max(current - 1, 1))
        counts = [self.costs.count(batch, length) for length in others]
        thin = min(counts) < self.ENOUGH
        if self._memory.since % (self.FILL_EVERY if thin else self.REFRESH_EVERY) == 0:
            turn = self._memory.since // self.REFRESH_EVERY % len(others)
            self._plan = [others[counts.index(min(counts)) if thin else turn]]
