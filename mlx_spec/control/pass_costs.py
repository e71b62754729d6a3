"""``PassCosts``: seconds of one model's pass over M tokens, as measured on this machine.

Cost by M is a staircase on Metal, a line on some CPUs and neither on others: with a fast BLAS on
two cores a pass of 16 tokens took less than one of 12. So nothing is assumed of it but what was
timed at its *edges*, and it may fall where M grows::

    seconds           .--.
             .--.----.    \\___.            edges        timed once, where nobody waits for it
      ._____.                               between      a straight line
      1  2  4  8     12   16  18            width(9..12) = 16: wider, and cheaper

What steps take corrects it (``note``): the speed of the machine, the point in question, and what
the keys cost that attention reads (``factors``). A table that was never measured says that a pass
costs by its tokens: then nothing is speculated on hope.

Where a model does not take tokens of different rows as it likes (``packs``), passes of 1, 2, 3 ...
tokens a row are tables of their own: pure Python, and no model of any hardware.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from itertools import pairwise
from statistics import median
from typing import Any

from mlx_spec.control.factors import Factor, follow

EDGES = (1, 2, 3, 4, 6, 8, 10, 12, 14, 15, 16, 18, 24, 30, 32, 33, 40, 48, 64, 96, 128)
FORMAT = 1


class CostCurve:
    """Seconds by tokens, at the machine's usual speed; of passes that are equally wide."""

    TIMED, GUESSED = 0.05, 0.15  # how far a point may be off that was timed, or lies between two
    UNKNOWN = 1e-3  # seconds a token where nothing was timed; the speed says the rest
    MARGIN, BELIEVED = 1.04, 1.7  # a wider pass must be cheaper by that much, and is by no more
    NARROW = 4  # tokens, up to which nothing is padded
    ALIKE = 0.005  # a point that has moved by less is left

    def __init__(self) -> None:
        self.timed: dict[int, float] = {}
        self._base: dict[int, float] = {}  # what was timed, and what was seen between
        self._factors: dict[int, Factor] = {}
        self._line: list[float] = []  # seconds by tokens, up to the last point
        self._widths: list[int] = []
        self._slope = self.UNKNOWN

    def put(self, points: Mapping[int, float]) -> None:
        """Take points that were timed; what steps have said of those is forgotten."""
        self.timed.update(points)
        self._base.update(points)
        for tokens in points:
            self._factors[tokens] = Factor(self.TIMED)
        if points:
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
        """The cheapest number of tokens, at least that many, by a margin."""
        return self._widths[tokens] if tokens < len(self._widths) else tokens

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
        line = [self._at(known[0])] * (known[0] + 1)
        for low, high in pairwise(known):
            begin, rise = line[low], (self._at(high) - line[low]) / (high - low)
            line += [begin + rise * step for step in range(1, high - low)]
            line.append(self._at(high))
        # The last step of a staircase says too little of what follows, or the wrong thing. One
        # point tells no slope at all: in proportion, then.
        last, ends = known[-1], {*known[-2:-1], *known[:-1][:1]}
        slopes = [(line[last] - line[one]) / (last - one) for one in ends]
        slope = max([0.0, *slopes]) if slopes else line[last] / last
        self._line, self._slope, self._widths = line, slope, self._cheapest(line)

    def _cheapest(self, line: list[float]) -> list[int]:
        widths, best = list(range(len(line))), None
        for tokens in reversed(range(1, len(line))):
            # What is padded away is not seen again: a point that is much dearer was mistimed more
            # likely than not, so it is run as it is and steps mend it.
            if (
                best is not None
                and tokens > self.NARROW
                and (self.MARGIN < line[tokens] / line[best] < self.BELIEVED)
            ):
                widths[tokens] = best
            if tokens in self._base and (best is None or line[tokens] <= line[best]):
                best = tokens
        return widths


class PassCosts:
    """Seconds of one model's passes. Thread-safe; shared by all who run the model.

    Attributes:
        speed: the machine's now, as a factor of what was timed.
        version: changes whenever the shape has, which the speed is no part of.
        looks: processes that have timed it.
    """

    FRESH, KEPT, NEVER = 0.3, 0.5, 6.0  # how far the speed may be off: timed now, once, never
    KEY_SECONDS, KEY_DOUBT = 1e-9, 3.0  # of a key where none was timed
    KEY_TIMED = 0.7

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.version = self.looks = 0
        self._curves: dict[int, CostCurve] = {1: CostCurve()}
        self._key_seconds = self.KEY_SECONDS
        self._key_factor = Factor(self.KEY_DOUBT)
        self.speed = Factor(self.NEVER)

    @property
    def known(self) -> bool:
        """Whether passes were timed, so that it can be said what a draft costs."""
        return len(self._curves[1].timed) > 1

    @property
    def points(self) -> dict[int, dict[int, float]]:
        """What was timed: seconds by tokens, by tokens a row (1 where a model packs)."""
        with self._lock:
            return {width: dict(curve.timed) for width, curve in self._curves.items()}

    @property
    def key(self) -> float:
        """Seconds of a key, as :meth:`put` was told; 0 where it was not."""
        return self._key_seconds if self._key_seconds != self.KEY_SECONDS else 0.0

    def put(
        self, points: Mapping[int, float], *, width: int = 1, key: float = 0.0, fresh: bool = True
    ) -> None:
        """Take passes that were timed.

        Where some are known already, the machine may have another speed by now: what is timed
        again says how much, and all that is new is taken in the speed of the old. Of two looks at
        one point the less counts: what else a machine does only makes a pass longer.

        Args:
            points: seconds by tokens.
            width: tokens of each row.
            key: seconds of a key that attention reads; 0 where nobody knows.
            fresh: whether just now, and not by another process before.
        """
        with self._lock:
            curve = self._curves.setdefault(width, CostCurve())
            again = [points[tokens] / curve.timed[tokens] for tokens in points.keys() & curve.timed]
            speed = median(again) if again else 1.0
            if points and (fresh or not self.known):
                self.speed = Factor(self.FRESH if fresh else self.KEPT, speed)
            curve.put(
                {
                    tokens: min(spent / speed, curve.timed.get(tokens, math.inf))
                    for tokens, spent in points.items()
                }
            )
            if key > 0:
                self._key_seconds, self._key_factor = key, Factor(self.KEY_TIMED)
            self.version += 1

    def seconds(self, tokens: int, keys: int = 0, *, width: int = 1) -> float:
        """Of a pass over so many tokens, whose attention reads ``keys`` keys.

        Args:
            keys: of all tokens: each reads those of its row. (On a CPU attention was seen to cost
                by these, not by the keys that there are.)
            width: tokens of each row, where the model does not pack.
        """
        return self.speed.times * (self.usual(tokens, width=width) + self.reading(keys))

    def reading(self, keys: int) -> float:
        """Seconds of reading so many keys at the machine's usual speed."""
        return self._key_seconds * self._key_factor.times * keys

    def usual(self, tokens: int, *, width: int = 1) -> float:
        """Seconds of a pass without keys at the machine's usual speed; between the widths that
        were timed on a line."""
        curves = self._curves
        if width in curves or len(curves) == 1:
            return curves.get(width, curves[1]).seconds(tokens)
        widths = sorted(curves)
        place = bisect_left(widths, width)
        if place == len(widths):
            return curves[widths[-1]].seconds(tokens)
        low, high = widths[place - 1], widths[place]
        share = (width - low) / (high - low)
        return (1 - share) * curves[low].seconds(tokens) + share * curves[high].seconds(tokens)

    def width(self, tokens: int) -> int:
        """The cheapest number of tokens, at least that many: what a pass is padded to.

        A wider one must be measurably cheaper, so that noise pads nothing.
        """
        return self._curves[1].width(tokens)

    def padded(self, counts: range) -> list[float]:
        """:meth:`usual` of the cheapest passes that have room for these numbers of tokens."""
        return self._curves[1].padded(counts)

    def dearest(self, tokens: int) -> float:
        """:meth:`usual` of a pass over so many tokens at most, as far as points say."""
        return self._curves[1].dearest(tokens)

    def cheapest(self, tokens: int, keys: int = 0) -> float:
        """Seconds of the cheapest pass that has room for so many tokens."""
        return self.seconds(self.width(tokens), keys)

    def note(self, tokens: int, keys: int, seconds: float, *, width: int = 1) -> None:
        """Learn from a step that was this pass and nothing else."""
        self.note_step((tokens, keys, width), seconds)

    def note_step(
        self,
        work: tuple[int, int, int],
        seconds: float,
        beside: Seq[tuple[Factor, float]] = (),
    ) -> None:
        """Learn from a step that was more than a pass.

        Args:
            work: tokens, keys and width of the pass.
            seconds: of the whole step.
            beside: what else it did: a factor, and the seconds that it is one of, at the usual
                speed.
        """
        tokens, keys, width = work
        with self._lock:
            curves = self._curves
            near = 1 if len(curves) == 1 else min(curves, key=lambda other: abs(other - width))
            curve = curves[near]
            plain, reading = self.usual(tokens, width=width), self.reading(keys)
            # What was never timed has one factor: a shape that nobody saw is not bent.
            own = [(curve.factor(tokens), plain)] if curve.timed else []
            whole = plain + reading + sum(part * one.times for one, part in beside)
            parts = [(self.speed, 1.0), *((one, part / whole) for one, part in own)]
            parts.append((self._key_factor, reading / whole))
            parts += [(one, part * one.times / whole) for one, part in beside]
            taken = follow(self.speed.times * whole, seconds, parts)
            if taken and own and curve.moved(tokens):
                self.version += 1

    def to_dict(self) -> dict[str, Any]:
        """What was timed, as plain data; what steps have said since is of the moment."""
        with self._lock:
            curves = {str(width): curve.timed for width, curve in self._curves.items()}
            points = {
                width: {str(tokens): spent for tokens, spent in sorted(timed.items())}
                for width, timed in curves.items()
            }
            return {"format": FORMAT, "points": points, "key": self.key, "looks": self.looks}

    @classmethod
    def from_dict(cls, held: Any) -> PassCosts:
        """Of what :meth:`to_dict` made, perhaps long ago.

        Raises:
            ValueError: it is something else.
        """
        costs = cls()
        try:
            if held["format"] != FORMAT:
                raise ValueError(f"format {held['format']}, expected {FORMAT}")
            key, costs.looks = _seconds(held["key"], least=0.0), int(held["looks"])
            for width, timed in held["points"].items():
                points = {_count(tokens): _seconds(spent) for tokens, spent in timed.items()}
                if points:
                    costs.put(points, width=_count(width), key=key, fresh=False)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no table of passes ({error!r})") from error
        return costs


def _count(text: Any) -> int:
    number = int(text)
    if not 0 < number <= 1 << 20:
        raise ValueError(f"{number} tokens")
    return number


def _seconds(value: Any, least: float = 1e-9) -> float:
    number = float(value)
    if not least <= number < 1e4:
        raise ValueError(f"{number} seconds")
    return number
