"""``AdaptiveDraftLength``: the draft length K of each step, from measured cost and acceptance.

A step with draft length K costs T(B, K) seconds for B rows and emits, for a row whose draft
tokens are accepted with chance a, ``1 + a + a**2 + ... + a**K`` tokens. Both are kept measured,
and the K with the most tokens per second is taken, K = 0 (plain decoding) included; so speculation
stops where it does not pay and returns where it does.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from mlx_spec.config import SpeculationConfig
from mlx_spec.control.acceptance import AcceptanceEstimate, expected_tokens
from mlx_spec.control.joins import JoinCost
from mlx_spec.control.report import StepReport, StepWork
from mlx_spec.control.row import Row, cap, room_of
from mlx_spec.control.shared import PairMeasurements


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
        pair: what was measured of the pair so far, by any decoder; more is measured here.
        source: the drafter whose guesses it is about, by name, where several draft.
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

    def __init__(
        self, config: SpeculationConfig, pair: PairMeasurements | None = None, source: str = ""
    ) -> None:
        pair = pair or PairMeasurements()
        self.config = config
        self.costs = pair.costs
        self._average = pair.acceptance
        self._acceptance = AcceptanceEstimate(pair.acceptance, source)
        self._joins = JoinCost(pair.reading, source)
        # This decoder's alone, and undone with a step that is dropped.
        known = self.costs.comparable
        self._plan: tuple[int, ...] = () if known else self.START_LENGTHS
        # None: the first decision goes by what is known.
        self._length = None if known else min(2, config.num_draft_tokens)
        self._since = 0  # decisions since it changed or was last tried
        self._undo: tuple[tuple[int, ...], int | None, int] = (self._plan, self._length, 0)

    @property
    def current(self) -> int:
        """The draft length in use when nothing is being tried."""
        return self._length or 0

    def choose(self, rows: Seq[Row]) -> list[int]:
        """One K for all rows, less only where a row is about to end."""
        self._undo = (self._plan, self._length, self._since)
        room = room_of(rows)
        longest = min(self.config.num_draft_tokens, max(room, default=0))
        if longest == 0:
            return [0] * len(room)
        if not self._plan:
            self._decide(rows, room, longest)
        length = self.current
        if self._plan:
            length, *rest = self._plan
            self._plan = tuple(rest)
        return cap(room, min(length, longest))

    def forget(self) -> None:
        """Put everything back as it was before the last choice."""
        self._plan, self._length, self._since = self._undo

    def chances(self, rows: Seq[Row]) -> list[float]:
        """Estimated acceptance of each row's next draft token, in [0, 1]."""
        return self._acceptance.chances(rows)

    def promise(self, rows: Seq[Row]) -> float | None:
        """The most tokens per second, at the best length; None while costs are not known."""
        room = room_of(rows)
        longest = min(self.config.num_draft_tokens, max(room, default=0))
        return max(self._goodput(rows, room, longest)) if self.costs.comparable else None

    def seconds(self, batch: int, length: int) -> float | None:
        """Expected ones of a step with such a draft, newcomers' texts included."""
        seconds = self.costs.predict(StepWork(batch, length))
        return seconds + self._joins.seconds if seconds and length else seconds

    def observe(self, report: StepReport) -> None:
        """Learn cost and acceptance from a finished step."""
        self._acceptance.observe(report)
        self._joins.observe(report, self.costs.predict(report.work))
        self.costs.record(report.work, report.seconds, clean=report.clean)

    def _goodput(self, rows: Seq[Row], room: list[int], longest: int) -> list[float]:
        """Predicted tokens per second of steps with draft lengths 0..``longest``."""
        tokens = expected_tokens(self._acceptance.chances(rows), room, longest)
        seconds = [self.seconds(len(room), length) for length in range(longest + 1)]
        return [
            count / spent if spent else 0.0 for count, spent in zip(tokens, seconds, strict=True)
        ]

    def _decide(self, rows: Seq[Row], room: list[int], longest: int) -> None:
        """Settle on a K for now; plan a refresh or a probe when one is due."""
        goodput = self._goodput(rows, room, longest)
        best = goodput.index(max(goodput))
        current = min(self.current, longest)
        better = goodput[best] > (1 + self.config.hysteresis) * goodput[current]
        if self._length is None:
            self._begin(best if better else 0)
            return
        self._since += 1
        if better:
            self._length, self._since = best, 0
        elif self._length > 0:
            self._refresh(len(room), current, longest)
        elif self._since >= self.config.probe_interval or self._unknown(len(room)):
            self._probe(rows, goodput)

    def _begin(self, length: int) -> None:
        """Start with what the pair promises, and take turns where calls before this one ended.

        Calls that are shorter than the time between two trials would otherwise never try.
        """
        self._length = length
        self._since = self.costs.steps if length else self._average.untested

    def _probe(self, rows: Seq[Row], goodput: list[float]) -> None:
        """Try speculation again, if it was left alone for long enough to afford it."""
        length = goodput.index(max(goodput[1:]), 1)
        # Two tokens tell more than one, where they cost little more.
        if len(goodput) > 2 and goodput[2] > 0.8 * goodput[length]:
            length = max(length, 2)
        longest = self.LONGEST_PROBE_FACTOR * self.config.probe_interval
        wait = min(longest, self._probe_price(rows, length) / self.PROBE_SHARE)
        if self._since >= wait or self._unknown(len(rows)):
            self._plan = (length,) * self.PROBE_STEPS
            self._since = 0

    def _unknown(self, batch: int) -> bool:
        """Whether no draft was ever timed at this batch size: then a guess stands for it."""
        lengths = range(1, self.config.num_draft_tokens + 1)
        return not any(self.costs.count(StepWork(batch, length)) for length in lengths)

    def _probe_price(self, rows: Seq[Row], length: int) -> float:
        """What a probe loses if nothing is accepted, in plain steps."""
        plain, drafting = (self.costs.predict(StepWork(len(rows), k)) for k in (0, length))
        if not plain or not drafting:
            return 0.0
        lost = self.PROBE_STEPS * max(0.0, drafting / plain - 1.0)
        return lost + self._joins.to_read(rows) / plain

    def _refresh(self, batch: int, current: int, longest: int) -> None:
        """Now and then one step at a neighbouring K or at 0, the least measured one first."""
        others = (0, min(current + 1, longest), max(current - 1, 1))
        counts = [self.costs.count(StepWork(batch, length)) for length in others]
        thin = min(counts) < self.ENOUGH
        if self._since % (self.FILL_EVERY if thin else self.REFRESH_EVERY) == 0:
            turn = self._since // self.REFRESH_EVERY % len(others)
            self._plan = (others[counts.index(min(counts)) if thin else turn],)
