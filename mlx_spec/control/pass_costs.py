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
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.control.cost_curve import CostCurve
from mlx_spec.control.factors import Factor, follow

EDGES = (1, 2, 3, 4, 6, 8, 10, 12, 14, 15, 16, 18, 24, 30, 32, 33, 40, 48, 64, 96, 128)
FORMAT = 2  # 1: the least of looks, which drifted


class PassCosts:
    """Seconds of one model's passes. Thread-safe; shared by all who run the model.

    Attributes:
        speed: the machine's now, as a factor of what was timed.
        version: changes whenever the shape has, which the speed is no part of.
    """

    FRESH, KEPT, NEVER = 0.3, 0.5, 6.0  # how far the speed may be off: timed now, once, never
    KEY_SECONDS, KEY_DOUBT = 1e-9, 3.0  # of a key where none was timed
    KEY_TIMED = 0.7

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.version = 0
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

    def looks_at(self, width: int = 1) -> Counter[int]:
        """How often each number of tokens was timed, as far as that counts."""
        with self._lock:
            looks = self._curves[width].looks if width in self._curves else []
            return Counter(tokens for look in looks for tokens in look)

    @property
    def key(self) -> float:
        """Seconds of a key, as :meth:`put` was told; 0 where it was not."""
        return self._key_seconds if self._key_seconds != self.KEY_SECONDS else 0.0

    def put(self, points: Mapping[int, float], *, width: int = 1, key: float = 0.0) -> None:
        """Take passes that were timed just now.

        They are one look: the machine may have had another speed at the last one, so what both
        have timed says how much, and a point is the middle of what all looks say (``looks``).

        Args:
            points: seconds by tokens.
            width: tokens of each row.
            key: seconds of a key that attention reads; 0 where nobody knows.
        """
        with self._lock:
            speed = self._curves.setdefault(width, CostCurve()).put(points)
            if points:
                self.speed = Factor(self.FRESH, speed)
            if key > 0:
                self._key_seconds, self._key_factor = key, Factor(self.KEY_TIMED)
            self.version += 1

    def join(self, other: PassCosts) -> None:
        """Take what another process has timed, and what a key costs where nobody said."""
        with self._lock:
            known = self.known
            for width, curve in other._curves.items():
                changed = self._curves.setdefault(width, CostCurve()).join(curve.looks)
                if width == 1 and known:
                    doubt = math.sqrt(self.speed.variance)
                    self.speed = Factor(doubt, self.speed.times / changed)
            if not known and self.known:
                self.speed = Factor(self.KEPT)
            if other.key and not self.key:
                self._key_seconds, self._key_factor = other.key, Factor(self.KEY_TIMED)
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

    def ran(self, own: int, tokens: int, *, clean: bool = True) -> None:
        """A pass that needed ``own`` tokens has computed ``tokens``: says when it is time to see
        the other width (``other_widths``); ``clean`` whether the step's seconds will be noted."""
        with self._lock:
            self._curves[1].ran(own, tokens, clean=clean)

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
            looks = {
                str(width): [
                    {str(tokens): spent for tokens, spent in sorted(look.items())}
                    for look in curve.looks
                ]
                for width, curve in self._curves.items()
            }
            return {"format": FORMAT, "timed": looks, "key": self.key}

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
            key = _seconds(held["key"], least=0.0)
            for width, looks in held["timed"].items():
                curve = costs._curves.setdefault(_count(width), CostCurve())
                curve.join([{_count(n): _seconds(s) for n, s in look.items()} for look in looks])
            if key:
                costs._key_seconds = key
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
