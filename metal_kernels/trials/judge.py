"""In what order kernels are tried within a time, and what follows of it. No mlx here.

What happens is told as *events*, one a step, as JSON holds them: so a process that dies in the
middle has told what it was at. ``follow`` makes them verdicts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from metal_kernels.trials.site import (
    ALL_POINTS,
    KernelPoint,
    KernelSite,
    importance,
    points_of,
)

# A kernel is taken where it needs at most this share of the composition's time.
WINNING_RATIO = 0.97
# A step that alone takes so many seconds is not tried again: no kernel may cost a load as much.
HANGS = 1.0
MOST_IDLE = 3  # trials without getting on, after which a site is given up

Event = dict[str, Any]


class KernelTimes(NamedTuple):
    """Seconds of one call at a point: ours, MLX's composition, and the median of their ratios."""

    ours: float
    theirs: float
    ratio: float


class TrialMachine(Protocol):
    """Where kernels are tried: a device, or what a test puts in its place."""

    def error(self, site: KernelSite, point: KernelPoint) -> float:
        """How far the kernel is off, in units of its tolerance. May raise anything."""
        ...

    def times(self, site: KernelSite, point: KernelPoint) -> KernelTimes:
        """How long the two take. May raise anything."""
        ...


@dataclass(frozen=True)
class KernelVerdict:
    """What is known of a site.

    Attributes:
        site: where.
        state: ``"right"``; ``"unfinished"``, points are left to be tried; or why it is off:
            ``"wrong"``, ``"raised"``, ``"hung"``, ``"died"``.
        why: more about the state, in words.
        times: of the points that were tried and right.
        idle: trials in which it did not get on.
    """

    site: KernelSite
    state: str = "unfinished"
    why: str = ""
    times: tuple[tuple[KernelPoint, KernelTimes], ...] = ()
    idle: int = 0

    @property
    def broken(self) -> bool:
        """Whether the kernel cannot be trusted there, now and later."""
        return self.state not in ("right", "unfinished")

    @property
    def won(self) -> frozenset[KernelPoint]:
        """The points where the kernel is right and pays."""
        if self.broken:
            return frozenset()
        return frozenset(point for point, times in self.times if times.ratio <= WINNING_RATIO)

    @property
    def left(self) -> tuple[KernelPoint, ...]:
        """The points that are still to be tried."""
        done = {point for point, _ in self.times}
        points = () if self.broken else points_of(self.site.operation)
        return tuple(point for point in points if point not in done)


def judge(
    verdicts: Iterable[KernelVerdict],
    machine: TrialMachine,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Try what is left of sites, for so many seconds; tell every step before and after it.

    A step is not interrupted: whoever cannot wait for one listens from another process.

    Args:
        verdicts: what is known, one for each site; those that a step was left of come first.
        machine: where to try.
        seconds: from now; no step begins later.
        clock: seconds.
    """
    end = clock() + seconds
    order = sorted(verdicts, key=lambda known: (not known.why, importance(known.site)))
    # All operations at the point that decides most before any at the next one.
    for point in ALL_POINTS:
        for known in order:
            if point not in known.left:
                continue
            if clock() >= end:
                yield {"event": "end"}
                return
            yield {"event": "begin", "site": known.site.record(), "point": list(_plain(point))}
            tried = _try(known, machine, point)
            order[order.index(known)] = tried
            yield {"event": "tried", "verdict": to_record(tried)}
    yield {"event": "end"}


def _plain(point: KernelPoint) -> tuple[int, int, int]:
    return point.rows, point.tokens, point.keys


def _try(known: KernelVerdict, machine: TrialMachine, point: KernelPoint) -> KernelVerdict:
    """What is known of a site after one more point."""
    try:
        error = machine.error(known.site, point)
        if not error <= 1:
            words = "NaN" if math.isnan(error) else f"{error:.3g} times what its type allows"
            return replace(known, state="wrong", why=f"off by {words} at {point}", times=())
        times = machine.times(known.site, point)
    except Exception as failed:  # whatever a compiler or a device says
        text = " ".join(str(failed).split())[:200]
        return replace(
            known, state="raised", why=f"{type(failed).__name__} at {point}: {text}", times=()
        )
    known = replace(known, times=(*known.times, (point, times)), why="", idle=0)
    return replace(known, state="unfinished" if known.left else "right")


class Followed:
    """Verdicts as events arrive.

    Args:
        verdicts: what was known before.
    """

    def __init__(self, verdicts: Iterable[KernelVerdict]) -> None:
        self._known = {known.site: known for known in verdicts}
        self._before = dict(self._known)
        self._at: tuple[KernelSite, KernelPoint] | None = None
        self._begun = 0.0
        self.ended = False

    @property
    def verdicts(self) -> tuple[KernelVerdict, ...]:
        """As they stand."""
        return tuple(self._known.values())

    def take(self, event: Event, now: float) -> None:
        """One more event, heard at a time.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        if event["event"] == "begin":
            self._at = KernelSite.of(event["site"]), KernelPoint(*event["point"])
            self._begun = now
        elif event["event"] == "tried":
            known = from_record(event["verdict"])
            self._known[known.site], self._at = known, None
        elif event["event"] == "end":
            self.ended = True

    def stop(self, now: float, died: str = "") -> None:
        """No event comes any more: all is tried, the process died, or its time was up."""
        if self._at is not None:
            site, point = self._at
            took = now - self._begun
            if died:
                state, why = "died", f"its process ended at {point}: {died}"
            elif took >= HANGS:
                state, why = "hung", f"not done after {took:.1f} s at {point}"
            else:
                state, why = "unfinished", f"the time was up at {point}"  # first, the next time
            self._known[site] = replace(self._known[site], state=state, why=why)
        for site, known in self._known.items():
            if known.left and known.times == self._before[site].times:
                self._known[site] = _idler(known, died)


def _idler(known: KernelVerdict, died: str) -> KernelVerdict:
    """What did not get on in a trial: given up after some of them."""
    if known.idle + 1 < MOST_IDLE:
        return replace(known, idle=known.idle + 1)
    why = f"trials end before it is tried ({died})" if died else "trials have no time left for it"
    return replace(known, state="hung", why=why, idle=MOST_IDLE)


def to_record(known: KernelVerdict) -> dict[str, Any]:
    """As JSON holds it."""
    return {
        "site": known.site.record(),
        "state": known.state,
        "why": known.why,
        "times": [[*_plain(point), *times] for point, times in known.times],
        "idle": known.idle,
    }


def from_record(record: Any) -> KernelVerdict:
    """From what :func:`to_record` gave.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    times, site = [], KernelSite.of(record["site"])
    for rows, tokens, keys, *seconds in record["times"]:
        point, taken = KernelPoint(rows, tokens, keys), KernelTimes(*map(float, seconds))
        if point not in points_of(site.operation) or not all(0 < each < math.inf for each in taken):
            raise ValueError(f"times {seconds} at {point}")
        times.append((point, taken))
    if record["state"] not in ("right", "unfinished", "wrong", "raised", "hung", "died"):
        raise ValueError(f"state {record['state']!r}")
    idle = int(record["idle"])
    return KernelVerdict(site, record["state"], str(record["why"]), tuple(times), idle)
