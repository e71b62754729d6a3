"""``TimedPart``: a model, or what of it drafts, and how its passes come to be known.

From another decoder of this process, from disk, or by timing them, first what rows that wait could
run; then what is lacking, as far as somebody has time for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mlx_spec.control.pass_costs import EDGES, PassCosts
from mlx_spec.decoding.drafters.base import Trial
from mlx_spec.model.cost_files import keep_costs, kept_costs, model_lines
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.pass_timing import COARSE, PassTimer, order_of
from mlx_spec.model.ranks import LONE, Ranks

FIRST, MORE = 2.0, 0.6  # seconds: where nothing is known, and where nothing is of so many rows
LOOKS = 5  # at each point
PADDED = 1.5  # times their tokens that passes of the rows may be padded to, worth a second look


@dataclass(frozen=True)
class Wanted:
    """What is to be timed now.

    Attributes:
        fewest, most: tokens of a pass.
        needed: those of one without which nothing can be compared.
        rows: that wait, of one token each in their shortest passes.
        width: of each, in their widest.
        share: of the usual time.
        stopping: whether nobody waits any more.
    """

    fewest: int
    most: int
    needed: int
    rows: int
    width: int
    share: float
    stopping: Callable[[], bool]

    @property
    def present(self) -> tuple[int, int]:
        """Fewest and most tokens of passes of the rows that wait."""
        return self.rows, self.rows * self.width + 1


@dataclass(frozen=True)
class TimedPart:
    """Something whose passes are timed.

    Attributes:
        name: in words.
        costs: what is known of it.
        trial: how it is run.
        widths: tokens a row of its passes.
        ranks: that run it, by rank 0's clock; what is kept is rank 0's.
    """

    name: str
    costs: PassCosts
    trial: Trial
    widths: tuple[int, ...] = (1,)
    ranks: Ranks = LONE

    def see_to(self, wanted: Wanted) -> int:
        """Know what it costs at all, from here or from disk; how many kinds of passes were timed
        for that."""
        if not self.costs.known and self._fetch():
            self._key()
        reached = max(self.costs.points[1], default=0)
        if self.costs.known and reached >= min(wanted.needed, EDGES[-1]):
            return 0
        first = not self.costs.known
        seconds = (FIRST if first else MORE) * wanted.share
        timed = self._time(wanted, seconds, sparing=self._much)
        if first:
            self._key()
        self._keep()
        return timed

    def look_closer(self, wanted: Wanted, seconds: float) -> int:
        """Time what is lacking of what the rows may run; how many kinds of passes were."""
        before = self.costs.version
        timed = self._time(wanted, seconds)
        if not timed:
            # Who timed what is known may have been disturbed.
            self._time(wanted, seconds, again=True)
        if self.costs.version != before:
            self._keep()
        return timed

    def _time(
        self, wanted: Wanted, seconds: float, *, again: bool = False, sparing: bool = False
    ) -> int:
        """Time passes for so long, or some of them again; how many are new."""
        clock = self.ranks.clock(time.perf_counter)
        timer = PassTimer(clock() + seconds, wanted.stopping, clock, compiles=not on_cpu())
        found = 0
        for width in self.widths:
            order = self._again(width, wanted) if again else self._lacking(width, wanted, sparing)
            found += self._points(width, order, timer)
        return found

    def _points(self, width: int, order: list[int], timer: PassTimer) -> int:
        """Time passes of so many tokens a row; how many are new."""
        known = self.costs.points.get(width, {})
        if not order:
            return 0
        points = timer.time(partial(self.trial.describe, width=width), order)
        self.costs.put(points, width=width)
        return len(points.keys() - known)

    def _lacking(self, width: int, wanted: Wanted, sparing: bool) -> list[int]:
        """What is not known, beside some that are: they tell how fast the machine is now, beside
        when those were timed. There may be time for two passes and no more."""
        known = self.costs.points.get(width, {})
        # Their own number is a point too; steps say it of numbers that come later.
        counts = sorted(EDGES if self._much else {*EDGES, wanted.rows})
        edges = [count * width for count in counts if count * width >= wanted.fewest]
        order = order_of(edges, known, wanted.most, wanted.present, sparing=sparing)
        near = self._near(width, wanted)
        return [*near[:1], *order[:1], *near[1:2], *order[1:]] if order else []

    def _again(self, width: int, wanted: Wanted) -> list[int]:
        """What is known of passes that the rows may run or are padded to: what was seen least
        first, behind the one that they run most likely, which all others are compared with."""
        looks, most = self.costs.looks_at(width), PADDED * wanted.present[1]
        near = [tokens for tokens in self._near(width, wanted) if tokens <= most]
        lacking = sorted((n for n in near if looks[n] < LOOKS), key=lambda n: looks[n])
        return [*dict.fromkeys([*near[:1], *lacking])] if lacking else []

    def _near(self, width: int, wanted: Wanted) -> list[int]:
        known = self.costs.points.get(width, {})
        return sorted(known, key=lambda tokens: (abs(tokens - wanted.rows), tokens))

    def _key(self) -> None:
        """What a key costs begins at the share of bytes that it is."""
        share = self.ranks.share(self.trial.key_share)
        self.costs.put({}, key=share * self.costs.usual(1))

    def _keep(self) -> None:
        if self.ranks.rank == 0:
            keep_costs(self._lines, self.costs)

    @property
    def _lines(self) -> tuple[str, ...]:
        return model_lines(*self.trial.models, part=self.trial.part + self.ranks.words)

    @property
    def _much(self) -> bool:
        """Whether so much is known that only what is needed now is worth a pause."""
        return len(self.costs.points[1]) > len(COARSE)

    def _fetch(self) -> bool:
        """Take over what another process has timed; whether there was anything."""
        kept = kept_costs(self._lines) if self.ranks.rank == 0 else None
        if self.ranks.several:
            record = self.ranks.share(None if kept is None else kept.to_dict())
            kept = None if record is None else PassCosts.from_dict(record)
        if kept is None:
            return False
        self.costs.join(kept)
        return True
