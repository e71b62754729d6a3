"""``Ranks``: the processes that hold one model together, each a part of its weights.

Every rank runs the same engine over its part, so every rank must decide alike. Rank 0 decides: what
arrives, what time it is and what was measured are rank 0's, and so are the tokens that a step has
chosen. Ranks meet once a step, when what was launched has been read and nothing is in the air::

    rank 0   build n+1 | read n | meet: time, seconds, requests | launch n+1 | emit n | do requests
    rank 1   build n+1 | read n | meet: takes them over         | launch n+1 | emit n | do requests
    device   ==== step n ====|                                    |==== step n+1 ====

A meeting compares a digest of all passes that were described since the engine began to run: ranks
that disagree say so before the pass in question is launched, where they would wait for each other
for ever. What is shared travels over MLX's own links, as a sum to which other ranks add nothing.

A model that one process holds has ``LONE`` ranks: each of these methods then gives back what it
takes.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from zlib import crc32

import mlx.core as mx

from mlx_spec.errors import InvalidRequest, RankError
from mlx_spec.model.device_stream import DeviceStream
from mlx_spec.model.rank_link import RankLink
from mlx_spec.model.rank_watch import RankWatch
from mlx_spec.weak_memo import WeakMemo

T = TypeVar("T")
Clock = Callable[[], float]


class Ranks:
    """One process alone; also what several have in common.

    Attributes:
        rank: the number of this process, from 0; that one decides.
        size: processes.
        kind: ``"tensor"`` or ``"pipeline"``, how the model is divided; empty for one process.
        several: whether there are others.
        layers: of the whole model, where a rank has some only; else 0.
    """

    rank, size, kind, layers = 0, 1, "", 0
    several = False

    @property
    def words(self) -> str:
        """How the model is divided, for names of what was measured of it."""
        return f" {self.kind} of {self.size}" if self.several else ""

    def share(self, value: T) -> T:
        """Rank 0's value, on all ranks; nothing may be in the air."""
        return value

    def gather(self, what: str, value: T) -> list[T]:
        """The values of all ranks, in their order; ``what`` they are is the same on all."""
        return [value]

    def clock(self, own: Clock) -> Clock:
        """The clock that all ranks read alike: ``own`` of rank 0, where nothing is in the air."""
        return own

    def meet(self, told: T) -> T:
        """Once a step: rank 0's ``told``, on all."""
        return told

    def chosen(self, tokens: mx.array) -> mx.array:
        """Rank 0's tokens, lazily: integers, which have no NaN."""
        return tokens

    def note(self, *facts: int) -> None:
        """A pass that all ranks describe alike."""

    def when_lost(self, heard: Callable[[str], None]) -> None:
        """Have somebody told, in words, that a rank is gone; soon after the process ends."""


LONE = Ranks()


@dataclass(frozen=True)
class Meeting:
    """What rank 0 says at a meeting.

    Attributes:
        engine: whose step it is.
        digest: of what was described since it began to run.
        time: of rank 0's clock.
        told: what was measured.
        commands: what arrived for the engine since the last one.
    """

    engine: int
    digest: int
    time: float
    told: Any
    commands: tuple[Any, ...]


@dataclass(frozen=True)
class End:
    """Rank 0's program ends."""


class Abandoned(Exception):
    """Rank 0 does not go on with an engine.

    Attributes:
        message: what it says instead.
    """

    def __init__(self, message: Any) -> None:
        super().__init__("rank 0 has left the step")
        self.message = message


class SeveralRanks(Ranks):
    """Processes that were launched together, by ``mlx.launch``.

    Args:
        link: to the others.
        kind: how the model is divided.
        watch: whether the others are there.
        layers: of the whole model.

    Attributes:
        numbers: of engines.
        told: whether the others were ever told anything.
        engine: number of the engine that runs.
        device: where that one works.
        running: that one, on rank 0, while it has rows.
        turn: held, on rank 0, by whoever talks to the others.
        time: of rank 0's clock, at the last meeting.
        posted: on rank 0, commands that the next meeting takes along.
        brought: commands that meetings have brought and nobody has done yet.
        meetings: so far.
    """

    several = True

    def __init__(self, link: RankLink, kind: str, watch: RankWatch, layers: int = 0) -> None:
        self.rank, self.size, self.kind, self.layers = link.rank, link.size, kind, layers
        self._link, self._watch, self._own = link, watch, DeviceStream()
        self.numbers, self.told = itertools.count(1), False
        self.device: DeviceStream | None = None
        self.running: weakref.ref[Any] | None = None
        self.turn = threading.RLock()
        self._gone: list[int] = []
        _MET.append(self)
        self.engine, self.time, self.meetings = 0, 0.0, 0
        self.posted: list[Any] = []
        self.brought: list[Any] = []
        self._digest = 0

    def share(self, value: T) -> T:
        return self._link.share(value)

    def gather(self, what: str, value: T) -> list[T]:
        return self._link.gather(what, value)

    def clock(self, own: Clock) -> Clock:
        return lambda: self.share(own())

    def meet(self, told: T) -> T:
        """The same of several, and what rank 0 has for them.

        Raises:
            Abandoned: rank 0 does not go on.
            RankError: this rank has described other passes.
        """
        commands, self.posted = tuple(self.posted), []
        said = Meeting(self.engine, self._digest, time.perf_counter(), told, commands)
        message: Any = self.share(said)
        if not isinstance(message, Meeting) or message.engine != self.engine:
            raise Abandoned(message)
        if message.digest != self._digest:
            raise RankError(
                f"[Ranks.meet] rank {self.rank} of {self.size} has described other passes than "
                f"rank 0, at meeting {self.meetings + 1}"
            )
        self.time = message.time
        self.brought += message.commands
        self.meetings += 1
        shared: T = message.told
        return shared

    def begin(self, engine: int, now: float) -> None:
        """An engine that stood still runs from here on, at a time of rank 0's clock."""
        self.engine, self.time, self._digest = engine, now, 0
        self.posted, self.brought = [], []

    def take(self) -> list[Any]:
        """What meetings have brought; it is to be done now."""
        commands, self.brought = self.brought, []
        return commands

    def dropped(self, number: int) -> None:
        """Rank 0 has no engine of this number any more; the others hear of it some time."""
        self._gone.append(number)

    def take_gone(self) -> tuple[int, ...]:
        """Those that were dropped since."""
        gone, self._gone = tuple(self._gone), []
        return gone

    def tell(self, message: Any, engine: Any = None) -> None:
        """On rank 0, between steps: say something to the others, who wait for it.

        Args:
            message: that.
            engine: who says it.

        Raises:
            InvalidRequest: another engine has rows.
            RankError: one is gone.
        """
        running = None if self.running is None else self.running()
        if running is not None and running is not engine:
            raise InvalidRequest(
                "[Engine] another generator or stream of this model has requests, and ranks run "
                "one at a time: finish or close it first"
            )
        self.rest()
        self.told = True
        self._watch.ring()
        with self._own.work():
            self.share(message)

    def listen(self) -> Any:
        """On another rank, between steps: wait for what rank 0 says."""
        self.rest()
        if not self._watch.wait():
            return End()
        with self._own.work():
            return self.share(None)

    def rest(self) -> None:
        """Wait until nothing is in the air."""
        if self.device is not None:
            self.device.synchronize()

    def leave(self, words: str) -> None:
        """This process ends, as it should or because of ``words``; it must not be waited for."""
        self._watch.leave(words)

    @property
    def lost(self) -> bool:
        """Whether a rank is gone."""
        return bool(self._link.lost)

    def end(self) -> None:
        """On rank 0, at the program's end: let the others go."""
        self.running = None
        if not self.told:
            self._watch.dismiss()
        elif self._watch.ends() and not self._link.lost:
            self.tell(End())
            self._watch.leave("")

    def pass_on(self) -> None:
        """On another rank, which was told to end: have rank 0 told so."""
        self._watch.pass_on()

    def why_lost(self) -> str:
        """After something failed: which rank is gone, in words; empty where all are there."""
        return self._watch.why_lost()

    def when_lost(self, heard: Callable[[str], None]) -> None:
        self._watch.heard.append(heard)

    def chosen(self, tokens: mx.array) -> mx.array:
        return self._link.chosen(tokens)

    def note(self, *facts: int) -> None:
        self._digest = crc32(repr(facts).encode(), self._digest)


_MET: list[SeveralRanks] = []
_WATCHES: list[RankWatch] = []


def note_watch(watch: RankWatch) -> None:
    """Have the other ranks end with this program, whether a model is loaded or not."""
    _WATCHES.append(watch)


@atexit.register
def _end_all() -> None:
    """Behind whoever closes what still runs: their modules are imported later than this one."""
    for ranks in _MET:
        if ranks.rank == 0:
            ranks.end()
        if ranks.lost:  # threads that wait in MLX's links would end the process with an abort
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(1)
    for watch in _WATCHES:
        if watch.rank == 0:
            watch.dismiss()


_KNOWN = WeakMemo[Ranks]()


def ranks_of(model: Any) -> Ranks:
    """The ranks that hold a model."""
    ranks = _KNOWN.get(model)
    return LONE if ranks is None else ranks


def note_ranks(model: Any, ranks: Ranks) -> None:
    """Remember whose a model is, while it lives."""
    _KNOWN.keep(ranks, model)


def whole_layers(model: Any) -> int:
    """How many layers a model has, those of all ranks."""
    return ranks_of(model).layers or len(getattr(model, "layers", ()))
