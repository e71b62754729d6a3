"""``AdaptiveSources``: which drafter each row takes, and how far, by what promises most per cost.

Each costly drafter has an ``AdaptiveDraftLength`` of its own, with costs and acceptance of its own
steps. The free ones need none: they say their chances, which are only checked (``found``). So one
drafter's luck never throttles another. Once the free ones have answered, two ways to go on are
compared by tokens per second::

    what was found alone, cut at W        W = 0..: (rows + what W brings) / T(free, W)
    the costly one for the others too     (rows + the better of both, each row) / T(costly, K)

Where nothing was measured, what is offered is taken, and so becomes known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.adaptive import AdaptiveDraftLength
from mlx_spec.control.found import Findings, Found
from mlx_spec.control.offers import NOBODY, Offer, Settled
from mlx_spec.control.report import StepReport, StepWork
from mlx_spec.control.row import Row, cap, room_of
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.control.turns import Turns


class AdaptiveSources:
    """Chooses drafters and lengths by measured costs and acceptance.

    Args:
        config: maximum draft length and intervals.
        found: what was measured of steps whose guesses were all looked up.
        costly: a policy of its own for each drafter that computes.
        asks: whether a free drafter has something to say of the next step.

    Attributes:
        free, costly, drafts: as ``SourceChoice`` has them.
    """

    TRUST = 3  # measurements of such a step before what was found is cut
    PLAIN_EVERY = 8  # while plain steps were measured less than that
    REFRESH_EVERY = 24
    PARK_AFTER = 8  # offers in a row of which nothing was worth its verification

    def __init__(
        self,
        config: SpeculationConfig,
        found: PairMeasurements,
        costly: Mapping[str, AdaptiveDraftLength],
        asks: Callable[[], bool],
    ) -> None:
        self._config, self._costs, self._asks = config, found.costs, asks
        self._findings = Findings(found.acceptance)
        self._policies = dict(costly)
        self._turns = Turns(list(costly), config.probe_interval)
        self.costly, self.drafts, self.free = self._turns.next, False, True
        self._lengths: list[int] = []  # of the costly one
        self._settled = self._refused = self._resting = 0
        self._undo = (True, 0)

    @property
    def turning(self) -> bool:
        """Whether another costly drafter is to be used from the next step on."""
        return self._turns.next != self.costly

    def choose(self, rows: Seq[Row]) -> list[int]:
        """What the costly drafter may guess; while others look up, as much as rows have room for:
        they say themselves how far they go, and :meth:`settle` cuts it.
        """
        self._undo = (self.free, self._resting)
        self.costly = self._turns.next
        policy = self._policies.get(self.costly)
        self._lengths = policy.choose(rows) if policy else [0] * len(rows)
        self.drafts = max(self._lengths, default=0) > 0
        wakes = self._wakes()
        if self.free and (wakes or self._asks()):
            return cap(room_of(rows), self._config.num_draft_tokens)
        return list(self._lengths)

    def _wakes(self) -> bool:
        """Whether those who look up are asked again, after their rest."""
        self._resting = 0 if self.free else self._resting + 1
        if self._resting < self._config.probe_interval:
            return False
        self.free, self._resting = True, 0
        return True

    def forget(self) -> None:
        """Put everything back as it was before the last choice."""
        self.free, self._resting = self._undo
        if self.costly:
            self._policies[self.costly].forget()

    def settle(self, rows: Seq[Row], offers: Seq[Offer], covered: Seq[bool]) -> Settled:
        """The better of what was found alone, and the costly drafter for rows that lack."""
        if not offers:
            wanted = _of_covered(self._lengths, covered)
            return Settled([NOBODY] * len(wanted), wanted, costly=any(wanted))
        found = self._findings.weigh(rows, offers)
        cut = self._cut(found)
        return self._both(rows, found, cut, covered) or found.alone(cut)

    def _cut(self, found: Found) -> int:
        """How far what was found is taken by itself."""
        batch, most, count = len(found.lengths), found.most, self._costs.count
        if not most:
            return 0
        self._settled += 1
        if self._settled % self.PLAIN_EVERY == 0 and count(StepWork(batch, 0)) < self.TRUST:
            return 0
        if self._strange(batch, most) or self._settled % self.REFRESH_EVERY == 0:
            return most
        goodput = [self._goodput(found, cut) for cut in range(most + 1)]
        best = goodput.index(max(goodput))
        self._refused = 0 if best else self._refused + 1
        if self._refused >= self.PARK_AFTER:
            self.free, self._refused = False, 0
        return best

    def _strange(self, batch: int, width: int) -> bool:
        return self._costs.count(StepWork(batch, width)) < self.TRUST

    def _goodput(self, found: Found, cut: int) -> float:
        seconds = self._costs.predict(StepWork(len(found.lengths), cut))
        return found.tokens(cut) / seconds if seconds else 0.0

    def _both(self, rows: Seq[Row], found: Found, cut: int, covered: Seq[bool]) -> Settled | None:
        """The costly drafter beside what was found, unless that promises less than it alone."""
        if not self.drafts:
            return None
        policy, batch = self._policies[self.costly], len(rows)
        wanted = _of_covered(self._lengths, covered)
        hopes = [
            sum(chance**n for n in range(1, k + 1))
            for chance, k in zip(policy.chances(rows), wanted, strict=True)
        ]
        keeps = [
            bool(n) and (sure or row[-1] >= hope)
            for n, sure, row, hope in zip(
                found.lengths, found.certain, found.brings, hopes, strict=True
            )
        ]
        passes = max((k for k, keep in zip(wanted, keeps, strict=True) if not keep), default=0)
        if not passes:
            return None
        lengths = [
            n if keep else k for n, keep, k in zip(found.lengths, keeps, wanted, strict=True)
        ]
        alone, seconds = self._goodput(found, cut), policy.seconds(batch, passes)
        known = policy.costs.comparable and not self._strange(batch, cut)
        if known and seconds:
            tokens = batch + sum(map(max, hopes, (row[-1] for row in found.brings)))
            if tokens / (seconds + self._wider(batch, passes, max(lengths))) < alone:
                return None
        picks = [pick if keep else NOBODY for pick, keep in zip(found.picks, keeps, strict=True)]
        return Settled(picks, lengths, costly=True)

    def _wider(self, batch: int, narrow: int, wide: int) -> float:
        """Seconds that a wider pass takes more, as far as that is known."""
        less, more = (self._costs.predict(StepWork(batch, width)) for width in (narrow, wide))
        return max(0.0, more - less) if less and more and wide > narrow else 0.0

    def observe(self, report: StepReport) -> None:
        """Learn from a step: each drafter by the rows that it guessed for."""
        self._findings.observe(report)
        ran = [name for name in self._policies if name in report.sources]
        for name in ran or (self._policies if not report.work.length else ()):
            self._policies[name].observe(self._own(report, name))
        if not ran:
            self._costs.record(report.work, report.seconds, clean=report.clean)
        self._turns.step(lambda name: self._policies[name].promise(report.rows))

    def _own(self, report: StepReport, name: str) -> StepReport:
        """What a costly drafter learns from: a pass as wide as its own drafts."""
        own = report.of(name)
        if own.work.length == report.work.length:
            return own
        wider = self._wider(len(report.rows), own.work.length, report.work.length)
        return replace(own, seconds=max(0.0, own.seconds - wider))


def _of_covered(lengths: Seq[int], covered: Seq[bool]) -> list[int]:
    return [length if known else 0 for length, known in zip(lengths, covered, strict=True)]
