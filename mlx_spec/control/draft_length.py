"""How far to guess: the draft length K of each step, from measured cost and acceptance.

A step with draft length K costs T(B, K) seconds for B rows and emits, for a row whose draft
tokens are accepted with chance a, ``1 + a + a**2 + ... + a**K`` tokens. ``AdaptiveDraftLength``
keeps both measured and picks the K with the most tokens per second, K = 0 (plain decoding)
included; so speculation stops where it does not pay and returns where it does.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.estimates import AcceptanceEstimate, JoinCost, StepReport, cap_lengths
from mlx_spec.control.known_costs import PairCosts
from mlx_spec.sequence import Sequence


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

    def __init__(self, config: SpeculationConfig, memory: PairCosts | None = None) -> None:
        self.config = config
        self._memory = memory or PairCosts()
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
