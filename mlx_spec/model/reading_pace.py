"""How fast a model reads prompts here, and so how much of one is read at once.

Seconds a token are measured of every pass, model by model, and shared by all who run that model.
Before the first one they are guessed, on the safe side, from the model's size and from what other
models have shown of the machine.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from mlx_spec.model.pace import AIM, FEWEST, PACE, Pace, power_of_two
from mlx_spec.model.ranks import LONE, Ranks
from mlx_spec.weak_memo import WeakMemo

# Passes after which a model's pace is known: kernels are compiled in the first of its kind.
TELLING = 2
# Passes that count: what one of them shows by chance is not believed.
_LAST = 5


class ReadingPace:
    """Seconds that one model takes a prompt token; thread-safe.

    Args:
        parameters: numbers in its weights, for the guess.
        machine: hears of every pass, and makes the guess.
    """

    def __init__(self, parameters: int, machine: Pace = PACE) -> None:
        self._parameters, self._machine = parameters, machine
        self._measured: deque[float] = deque(maxlen=_LAST)
        self._told = 0
        self._pieces: dict[tuple[float, int], int] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Of one token."""
        with self._lock:
            return self._seconds

    @property
    def _seconds(self) -> float:
        if not self._measured:
            return self._machine.seconds(self._parameters)
        return sorted(self._measured)[(len(self._measured) - 1) // 2]

    def note(self, tokens: int, seconds: float, *, exact: bool = True) -> None:
        """Learn from a pass.

        Args:
            tokens: that it read, padding included.
            seconds: that it took, at most where they are not ``exact``.
        """
        self._machine.note(self._parameters, tokens, seconds)
        each = max(seconds, 1e-9) / max(1, tokens)
        with self._lock:
            if exact or each < self._seconds:
                self._measured.append(each)
                self._told += tokens >= FEWEST

    def piece(self, bound: float, most: int) -> int:
        """Tokens between two cuts of a text, a power of two: what is read in ``bound`` seconds.

        At least ``FEWEST``, and at most ``most``. It stays what it is once the model's pace is
        known, whatever is measured later: K/V bits must not depend on the traffic.
        """
        with self._lock:
            kept = self._pieces.get((bound, most))
            if kept is None:
                fitting = max(FEWEST, int(bound / self._seconds))
                kept = power_of_two(min(fitting, most))
                if self._told >= TELLING:
                    self._pieces[bound, most] = kept
            return kept

    def chunk(self, bound: float, most: int, piece: int) -> int:
        """Tokens that are read in ``bound`` seconds while others wait; at most ``most``.

        At least a piece, whatever it takes. Only where that is more than ``AIM`` seconds, on a
        machine that has become much slower, fewer: then the pause counts, and not the cuts.
        """
        each = self.seconds
        longest = bound if piece * each <= AIM else AIM
        least = piece if piece * each <= AIM else min(piece, FEWEST)
        return min(max(least, int(longest / each)), most)


_KNOWN = WeakMemo[ReadingPace]()
_LOCK = threading.Lock()


def pace_of(model: Any, parameters: int, ranks: Ranks = LONE) -> ReadingPace:
    """The pace of a model, the same for all who run it while it is alive."""
    machine = PACE
    if ranks.several:  # what else runs on one of them must not tell it apart
        parameters, speed = ranks.share((parameters, PACE.speed))
        machine = Pace(speed)
    with _LOCK:
        pace = _KNOWN.get(model, key=ranks.several)
        if pace is None:
            pace = _KNOWN.keep(ReadingPace(parameters, machine), model, key=ranks.several)
        return pace
