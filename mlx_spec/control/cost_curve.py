"""``CostCurve``: seconds by tokens of passes that are equally wide, and what they are padded to.

Points are what was timed (``looks``), each times what steps have said of it (``factors``); between
them are straight lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from itertools import pairwise
from statistics import median

from mlx_spec.control.factors import Factor
from mlx_spec.control.looks import Looks
from mlx_spec.control.other_widths import OtherWidths


class CostCurve:
    """Seconds by tokens, at the machine's usual speed; of passes that are equally wide."""

    TIMED, GUESSED = 0.05, 0.15  # how far a point may be off that was timed, or lies between two
    UNKNOWN = 1e-3  # seconds a token where nothing was timed; the speed says the rest
    MARGIN, BELIEVED = 1.04, 1.7  # a wider pass must be cheaper by that much, and is by no more
    APART = 0.8  # of the last point, and no nearer, where another tells how the line goes on
    NARROW = 4  # tokens, up to which nothing is padded
    ALIKE = 0.005  # a point that has moved by less is left

    def __init__(self) -> None:
        self._looks = Looks()
        self._base: dict[int, float] = {}  # what was timed, and what was seen between
        self._factors: dict[int, Factor] = {}
        self._line: list[float] = []  # seconds by tokens, up to the last point
        self._widths: list[int] = []
        self._hoped: list[int] = []  # as looks alone say
        self._slope = self.UNKNOWN
        self._others = OtherWidths()

    @property
    def timed(self) -> dict[int, float]:
        """Seconds by tokens that looks say, and steps have no part in."""
        return self._looks.seconds

    @property
    def looks(self) -> list[dict[int, float]]:
        """What was timed, look by look."""
        return self._looks.held

    def put(self, look: Mapping[int, float]) -> float:
        """Take points that were timed one after another; how much longer they took than those of
        the oldest look. What steps have said of them is forgotten."""
        speed = self._looks.add(look)
        self._timed_anew(look)
        return speed

    def join(self, looks: Seq[Mapping[int, float]]) -> float:
        """Take what others have timed, before the newest of these; what all that was known is
        multiplied by, since the oldest look is another."""
        before = self.timed
        self._looks.join(looks)
        self._timed_anew(self.timed.keys() - before.keys())
        changed = [self.timed[tokens] / spent for tokens, spent in before.items()]
        return median(changed) if changed else 1.0

    def _timed_anew(self, points: Iterable[int]) -> None:
        self._base.update(self.timed)
        for tokens in points:
            self._factors[tokens] = Factor(self.TIMED)
        if self.timed:
            self._draw()

    def factor(self, tokens: int) -> Factor:
        """Of one number of tokens, which becomes a point of its own once it is asked for."""
        if tokens not in self._factors:
            self._base[tokens] = self.seconds(tokens)
            self._factors[tokens] = Factor(self.GUESSED)
            self._draw()
        return self._factors[tokens]

    def moved(self, tokens: int) -> bool:
        """Follow a point whose factor was told more; whether it is worth it."""
        if abs(self._at(tokens) / self._line[tokens] - 1.0) < self.ALIKE:
            return False
        self._draw()
        return True

    def seconds(self, tokens: int) -> float:
        """At a point, on the line between two, or on the line beyond the last."""
        line = self._line
        if tokens < len(line):
            return line[tokens]
        last = len(line) - 1
        return line[last] + self._slope * (tokens - last) if line else self._slope * tokens

    def width(self, tokens: int) -> int:
        """The cheapest number of tokens, at least that many, by a margin; now and then another
        that may be it, so that steps say which is."""
        usual, other = self._ways(tokens)
        return other if tokens in self._others.due else usual

    def _ways(self, tokens: int) -> tuple[int, int]:
        """What so many are padded to, and the other width: as they are, where they are padded;
        where only steps say that they better are not, what looks would pad them to."""
        widths, hoped = self._widths, self._hoped  # another thread may draw
        width = widths[tokens] if tokens < len(widths) else tokens
        if width != tokens or tokens >= len(hoped):
            return width, tokens
        return width, hoped[tokens]

    def ran(self, own: int, tokens: int, *, clean: bool) -> None:
        """A pass for so many tokens has computed ``tokens``; whether its time says something."""
        usual, other = self._ways(own)
        if usual != other:
            loss = abs(self._line[own] / self._line[max(other, usual)] - 1.0)
            self._others.ran(own, loss, looked=tokens == other, clean=clean)

    def again(self, own: int, tokens: int) -> None:
        """What such a pass took is too far off to be believed alone: seen again at once, if it was
        a look at the other width."""
        usual, other = self._ways(own)
        if usual != tokens == other:
            self._others.due.add(own)

    def padded(self, counts: range) -> list[float]:
        """Seconds of the cheapest pass that has room for each of these numbers of tokens."""
        widths, line = self._widths, self._line  # in this order: another thread may draw
        found = [line[width] for width in widths[counts.start : counts.stop]]
        return found + [self.seconds(tokens) for tokens in counts[len(found) :]]

    def dearest(self, tokens: int) -> float:
        """Seconds of so many at most: of a staircase nobody knows where between two points it
        rises."""
        above = min((point for point in self._base if point >= tokens), default=tokens)
        return max(self.seconds(tokens), self.seconds(above))

    def _at(self, tokens: int) -> float:
        return self._base[tokens] * self._factors[tokens].times

    def _draw(self) -> None:
        """Lines between all points: read at every step, drawn where one has moved."""
        known = sorted(self._base)
        line = _lines({tokens: self._at(tokens) for tokens in known})
        # The last step of a staircase says too little of what follows, or the wrong thing. One
        # point tells no slope at all: in proportion, then. Of two close together it is noise.
        last = known[-1]
        apart = [point for point in known if point <= self.APART * last]
        ends = {*apart[-1:], *known[:-1][:1]}
        slopes = [(line[last] - line[one]) / (last - one) for one in ends]
        slope = max([0.0, *slopes]) if slopes else line[last] / last
        self._line, self._slope = line, slope
        timed = _lines(self.timed)
        self._hoped = self._cheapest(timed, timed)
        self._widths = self._cheapest(line, timed)

    def _cheapest(self, line: list[float], timed: list[float]) -> list[int]:
        """What each number of tokens is padded to.

        What was timed must say so, too: steps of some tokens that take longer than thought may
        well do so for what a wider pass would pay as well (keys, what is done to logits).
        """
        widths, best = list(range(len(line))), None
        for tokens in reversed(range(1, len(line))):
            # A point that is much dearer was mistimed more likely than not: it is run as it is,
            # and steps mend it.
            if (
                best is not None
                and tokens > self.NARROW
                and best < len(timed)
                and self.MARGIN < line[tokens] / line[best] < self.BELIEVED
                and timed[best] < timed[tokens]
            ):
                widths[tokens] = best
            if tokens in self._base and (best is None or line[tokens] <= line[best]):
                best = tokens
        return widths


def _lines(points: Mapping[int, float]) -> list[float]:
    """Seconds of 0, 1, 2 ... tokens, up to the last point: straight between two."""
    known = sorted(points)
    line = [points[known[0]]] * (known[0] + 1)
    for low, high in pairwise(known):
        begin, rise = points[low], (points[high] - points[low]) / (high - low)
        line += [begin + rise * step for step in range(1, high - low)]
        line.append(points[high])
    return line
