"""What steps teach: how often drafts are accepted, and what newcomers cost the drafter.

``draft_length`` weighs these against the measured cost of a step (``cost_table``).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mlx_spec.control.known_costs import PairCosts
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

    def __init__(self, memory: PairCosts) -> None:
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

    def __init__(self, memory: PairCosts) -> None:
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
