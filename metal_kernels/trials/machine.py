"""The device at hand, as what kernels are tried on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import mlx.core as mx

from metal_kernels.trials.cases import error_at
from metal_kernels.trials.judge import KernelTimes
from metal_kernels.trials.pairs import PAIRS, Side
from metal_kernels.trials.site import KernelPoint, KernelSite

_LONG, _FEW_ROUNDS = 10, 3  # calls of so many times the time to spend get few rounds
_LARGE = 2**18  # keys of all rows and heads: no cache holds as many, and their values


class HereMachine:
    """MLX's default device.

    Args:
        rounds: of both sides, interleaved.
        spent: seconds that one side may take a round; a round has 1 to ``most`` calls.
        sets: of inputs, so that caches do not hold them; one where they are larger anyway.
    """

    def __init__(self, rounds: int = 5, spent: float = 2e-3, most: int = 20, sets: int = 2) -> None:
        self._rounds, self._spent, self._most, self._sets = rounds, spent, most, sets

    def error(self, site: KernelSite, point: KernelPoint) -> float:
        """As :class:`TrialMachine` has it."""
        return error_at(site, point)

    def times(self, site: KernelSite, point: KernelPoint) -> KernelTimes:
        """Medians over the rounds."""
        sets = self._sets if point.rows * point.keys * site.kv_heads < _LARGE else 1
        pairs = [PAIRS[site.operation](site, point) for _ in range(sets)]
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        seconds_of(ours, 1), seconds_of(theirs, 1)  # compile, and make the inputs
        once = seconds_of(ours, 1) + seconds_of(theirs, 1)
        repeats = max(1, min(self._most, int(2 * self._spent / max(once, 1e-9)))) // sets
        rounds = self._rounds if once < _LONG * self._spent else _FEW_ROUNDS
        return interleaved(ours, theirs, rounds, max(1, repeats))


def interleaved(
    ours: Sequence[Side], theirs: Sequence[Side], rounds: int, repeats: int
) -> KernelTimes:
    """Both sides round by round, the first of a round in turn."""
    own: list[float] = []
    other: list[float] = []
    for turn in range(rounds):
        sides = ((ours, own), (theirs, other))
        for calls, taken in sides if turn % 2 else sides[::-1]:
            taken.append(seconds_of(calls, repeats))
    ratios = [one / two for one, two in zip(own, other, strict=True)]
    return KernelTimes(*map(statistics.median, (own, other, ratios)))


def seconds_of(calls: Sequence[Side], repeats: int) -> float:
    """Of one call, on average over ``repeats`` rounds of the sets, in one evaluation."""
    begin = time.perf_counter()
    mx.eval([call() for _ in range(repeats) for call in calls])
    return (time.perf_counter() - begin) / (repeats * len(calls))
