"""``StepPrices``: what a step of one target and its drafters costs, drafting and verifying.

A step's seconds are one number, but what it computed is known: so many guesses, so many tokens in
the pass. The passes were timed (``pass_costs``); what steps take beyond that is learned of the
whole step, each part by its share of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from functools import cached_property

from mlx_spec.control.factors import Factor
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.control.report import StepReport

# A packed pass must be cheaper by that much: spreading tokens over their rectangle and taking
# answers out of it took 2% to 4% of a pass of 135M parameters (docs/LOG.md).
MARGIN = 1.03


def packing_pays(costs: PassCosts, tokens: int, rectangle: int, spared: int = 0) -> bool:
    """Whether a packed pass of so many tokens is cheaper than one of the whole rectangle, whose
    holes would read ``spared`` keys."""
    return costs.usual(tokens) * MARGIN < costs.usual(rectangle) + costs.reading(spared)


class DraftPrice:
    """What one drafter's guesses cost.

    Args:
        costs: seconds of one guess for so many rows, where that was timed; else None: it looks its
            guesses up, or nobody knows.
        first: tokens a row that its first pass reads.
    """

    TIMED, GUESSED = 0.5, 1.5  # how far that may be off
    # Of a plain pass, once a step: what waits for the host costs that at least. Where a drafter
    # that nobody timed costs more, its steps say so.
    LOOKED_UP = 0.01

    def __init__(self, costs: PassCosts | None = None, first: int = 1) -> None:
        self.costs, self.first = costs, first

    @cached_property
    def factor(self) -> Factor:
        """Of what was timed, once somebody has asked: by then it was, or will not be."""
        timed = self.costs is not None and self.costs.known
        return Factor(self.TIMED if timed else self.GUESSED)

    def usual(self, rows: int, passes: int, plain: float) -> float:
        """Seconds at the usual speed, before what steps have said; ``plain`` of a plain pass."""
        first, other = self._each(rows, plain)
        return first + (passes - 1) * other if passes > 0 else 0.0

    def line(self, rows: int, most: int, plain: float) -> list[float]:
        """:meth:`usual` of 0, 1, ... ``most`` passes."""
        first, other = self._each(rows, plain)
        return [0.0, *[first + more * other for more in range(most)]]

    def _each(self, rows: int, plain: float) -> tuple[float, float]:
        """Seconds of a step's first pass, and of each after it."""
        if self.costs is None or not self.costs.known:
            return self.LOOKED_UP * plain, 0.0
        return self.costs.usual(rows * self.first), self.costs.usual(rows)


class StepPrices:
    """Prices of steps, in seconds, and what their passes are. Thread-safe; shared by all decoders
    of a pair.

    Args:
        target: passes of the target.
        drafts: by the drafter's name.
        packs: whether a pass may take any number of tokens from each row; else it is a rectangle.
            A function is asked once, when somebody wants to know.

    Attributes:
        target: this.
    """

    CURVES = 256  # kept: all of them are read at every step

    def __init__(
        self,
        target: PassCosts,
        drafts: Mapping[str, DraftPrice] | None = None,
        *,
        packs: bool | Callable[[], bool] = False,
    ) -> None:
        self.target, self._packs = target, packs
        self._drafts = dict(drafts or {})
        self._lock = threading.Lock()
        self._curves: dict[tuple[int, int], Seq[float]] = {}
        self._version = -1  # of the target's costs, that the curves are of

    @property
    def known(self) -> bool:
        """Whether passes were timed; else nothing is to be speculated on."""
        return self.target.known

    @property
    def packs(self) -> bool:
        """Whether a pass may take any number of tokens from each row."""
        if callable(self._packs):
            self._packs = self._packs()
        return self._packs

    def packed(self, counts: Seq[int], longest: int = 0) -> int | None:
        """Tokens of the packed pass over rows that bring so many each, where it costs less than
        their rectangle; None where that is the pass.

        It does where some rows bring fewer than others, or a number beyond all of them is cheaper.

        Args:
            counts: tokens of each row.
            longest: keys of the longest row, which each hole of a rectangle would read.
        """
        return self.packed_size(len(counts), max(counts), sum(counts), longest)

    def packed_size(self, rows: int, width: int, own: int, longest: int = 0) -> int | None:
        """The same of so many rows, of at most ``width`` tokens each and ``own`` in all."""
        rectangle, tokens = rows * width, self.target.width(own)
        spared = (rectangle - own) * longest
        if tokens == rectangle or not packing_pays(self.target, tokens, rectangle, spared):
            return None
        return tokens if self.packs else None

    def tokens(self, lengths: Seq[int]) -> int:
        """Tokens that the pass computes for drafts of these lengths, padding included."""
        counts = [length + 1 for length in lengths]
        return self.packed(counts) or len(counts) * max(counts)

    def verify(self, tokens: int, rows: int, keys: int = 0) -> float:
        """Seconds of a pass over ``tokens`` tokens of ``rows`` rows.

        Args:
            tokens: as :meth:`tokens` says; for any other number as it is, not padded.
            keys: that the rows have, each as many as the longest: what one token a row reads.
        """
        read = keys * tokens // max(rows, 1)
        return self.target.seconds(tokens, read, width=self._width(tokens, rows))

    def curve(self, rows: int, most: int, keys: int = 0) -> Seq[float]:
        """Seconds of verifying ``rows + 0``, ``rows + 1``, ... ``rows + most`` tokens.

        Where the model packs, each is the pass that has room for so many and is used for it, so
        that it falls nowhere but by less than the margin of ``PassCosts.width``; else only
        multiples of ``rows`` are passes, and what lies between is on a line.
        """
        if self._version != self.target.version or len(self._curves) > self.CURVES:
            self._version, self._curves = self.target.version, {}
        curve = self._curves.get((rows, most))
        if curve is None:
            usual, counts = self.target.usual, range(rows, rows + most + 1)
            if self.packs:
                curve = self.target.padded(counts)
            else:
                curve = [usual(tokens, width=self._width(tokens, rows)) for tokens in counts]
            self._curves[rows, most] = curve
        speed, row = self.target.speed.times, self.target.reading(keys)
        if not row:
            return [speed * seconds for seconds in curve]
        slope = row / max(rows, 1)  # each token reads the keys of its row
        return [speed * (seconds + row + slope * more) for more, seconds in enumerate(curve)]

    def risk(self, tokens: int) -> float:
        """Seconds that a pass over so many tokens may take beyond what is thought, where no point
        near it was timed."""
        if not self.packs:
            return 0.0
        return self.target.speed.times * (self.target.dearest(tokens) - self.target.usual(tokens))

    def draft(self, name: str, rows: int, passes: int) -> float:
        """Seconds of ``passes`` guesses one after the other for each of ``rows`` rows."""
        price = self._price(name)
        usual = price.usual(rows, passes, self.target.usual(rows))
        return self.target.speed.times * price.factor.times * usual

    def drafts(self, name: str, rows: int, most: int) -> list[float]:
        """:meth:`draft` of 0, 1, ... ``most`` guesses."""
        price = self._price(name)
        usual = price.line(rows, most, self.target.usual(rows))
        times = self.target.speed.times * price.factor.times
        return [times * seconds for seconds in usual]

    def observe(self, report: StepReport) -> None:
        """Learn from a step that did nothing else."""
        work, rows = report.work, len(report.rows)
        if not rows:
            return
        self.target.ran(rows + sum(report.lengths), work.tokens, clean=report.clean)
        if not report.clean:
            return
        plain = self.target.usual(rows)
        beside = []
        for name, passes in report.passes.items():
            price = self._price(name)
            beside.append((price.factor, price.usual(rows, passes, plain)))
        read = work.keys * work.tokens // rows
        done = (work.tokens, read, self._width(work.tokens, rows))
        self.target.note_step(done, report.seconds, beside)

    def _width(self, tokens: int, rows: int) -> int:
        return 1 if self.packs else -(-tokens // max(rows, 1))

    def _price(self, name: str) -> DraftPrice:
        price = self._drafts.get(name)
        if price is None:
            with self._lock:
                price = self._drafts.setdefault(name, DraftPrice())
        return price
