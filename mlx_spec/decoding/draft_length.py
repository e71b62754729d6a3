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
    PRIOR_TOKENS = 3.0  # how many tested tokens the average of all weighs

    def __init__(self, memory: PairMemory) -> None:
        self._rows: WeakKeyDictionary[Sequence, tuple[float, float]] = WeakKeyDictionary()
        self._memory = memory

    def observe(self, report: StepReport) -> None:
        """Count what one step tested."""
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

    # The first draft of newcomers also reads their prompts and is not timed.
    START_LENGTHS = (2, 2, 0)
    REFRESH_EVERY = 24
    PROBE_STEPS = 2  # the first brings a lagging drafter up to date and is not timed
    LONGEST_PROBE_FACTOR = 16

    def __init__(self, config: SpeculationConfig, memory: PairMemory | None = None) -> None:
        memory = memory or PairMemory()
        self.config = config
        self.costs = memory.costs
        self.acceptance = AcceptanceEstimate(memory)
        self._plan = [] if self.costs.comparable else list(self.START_LENGTHS)
        self._current = min(2, config.num_draft_tokens)
        self._since_change = 0
        self._probe_interval = config.probe_interval

    def choose(self, rows: Seq[Sequence]) -> list[int]:
        """One K for all rows, less only where a row is about to end."""
        longest = min(
            self.config.num_draft_tokens, max((row.remaining - 1 for row in rows), default=0)
        )
        if longest <= 0:
            return [0] * len(rows)
        if not self._plan:
            self._decide(rows, longest)
        length = self._plan.pop(0) if self._plan else self._current
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
        self._since_change += 1
        goodput = {length: self.goodput(rows, length) for length in range(longest + 1)}
        best = max(goodput, key=lambda length: goodput[length])
        current = min(self._current, longest)
        if goodput[best] > (1 + self.config.hysteresis) * goodput[current]:
            self._current = best
            self._since_change = 0
            if best > 0:
                self._probe_interval = self.config.probe_interval
        elif self._current == 0 and self._since_change >= self._probe_interval:
            drafting = max(range(1, longest + 1), key=lambda length: goodput[length])
            self._plan = [drafting] * self.PROBE_STEPS
            self._since_change = 0
            limit = self.LONGEST_PROBE_FACTOR * self.config.probe_interval
            self._probe_interval = min(2 * self._probe_interval, limit)
        elif self._current > 0 and self._since_change % self.REFRESH_EVERY == 0:
            neighbours = (0, min(self._current + 1, longest), max(self._current - 1, 1))
            turn = (self._since_change // self.REFRESH_EVERY) % len(neighbours)
            self._plan = [neighbours[turn]]
