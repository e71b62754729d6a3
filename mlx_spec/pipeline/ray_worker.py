"""One machine's part of a stage over Ray: a model that is loaded once, and chunks of records.

Two chunks are under way at a time where the model generates, so that rows stay full while the last
records of one chunk end. A record's line depends on nothing but the record, the options and its
number's seed: it is the same on every machine, and when it is made again.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from mlx_spec import __version__
from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.pipeline.backend import Backend, Models, Pending, open_backend
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.records import Record, to_line
from mlx_spec.pipeline.stage import Answer, Stage
from mlx_spec.pipeline.stage_runner import StageRunner, Tally
from mlx_spec.results import GenerationStats

ANSWER = "answer"
"""The column that comes back."""
_TRIES = 3  # of a chunk whose generator fails
_DEATHS = 5  # of workers under one chunk


@dataclass(frozen=True)
class RemoteWork:
    """What every worker does.

    Attributes:
        stage, flags: what is done with each record, and by which models.
        seed: the run's.
        version: of the program that started the run.
    """

    stage: Stage
    flags: Flags
    seed: int
    version: str = __version__

    @property
    def calls(self) -> int:
        """Chunks that a worker has under way at once; scoring runs in the thread that asks."""
        return 2 if self.stage.uses == "generate" else 1

    @property
    def chunk(self) -> int:
        """Records of a chunk: all chunks together are as many as one machine looks ahead."""
        return max(1, self.flags.look_ahead // 2)


@dataclass
class ChunkAnswer:
    """What came of a chunk.

    Attributes:
        worker: who did it.
        lines: of the output, in order.
        tally: counts of them.
        stats: that worker's figures since it began.
    """

    worker: str
    lines: list[bytes] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    stats: GenerationStats = field(default_factory=GenerationStats)

    def write(self, record: dict[str, Any]) -> None:
        """One record, as an output takes it."""
        self.lines.append(to_line(record))


class RayWorker:
    """An actor of Ray Data.

    Args:
        work: what is to be done.
        pace: the run's :class:`RunPace`, an actor.

    Raises:
        InvalidRequest: this machine has another version.
        MlxSpecError: a model cannot be used here.
    """

    def __init__(self, work: RemoteWork, pace: Any) -> None:
        if work.version != __version__:
            raise InvalidRequest(
                f"[ray] mlx-spec {__version__} on {_machine()}, {work.version} where the run was "
                "started"
            )
        self._work, self._models, self._name = work, Models(), _machine()
        self._pace, self._lock = pace, threading.Lock()
        self._held: ExitStack | None = None
        self._backend = self._open()

    def __call__(self, chunks: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Do chunks: a column of records in, a column of answers out."""
        from mlx_spec.pipeline.ray_source import CHUNK

        return {ANSWER: [pickle.dumps(self._tried(pickle.loads(one))) for one in chunks[CHUNK]]}

    def _tried(self, records: list[Record]) -> ChunkAnswer:
        """Do a chunk, and again where the generator failed under it.

        Raises:
            GeneratorClosed: its workers died of it again and again.
        """
        import ray

        first = records[0].number
        if ray.get(self._pace.begin.remote(first)) > _DEATHS:
            raise GeneratorClosed(
                f"[ray] the {len(records)} records from number {first} on: {_DEATHS} workers died "
                "over them"
            )
        for left in range(_TRIES - 1, -1, -1):
            backend = self._backend
            try:
                return self._do(records, backend)
            except Exception:  # the engine's own, or that there is none any more
                if not left:
                    raise
                self._replace(backend)
        raise AssertionError

    def _do(self, records: list[Record], backend: Backend) -> ChunkAnswer:
        answer = ChunkAnswer(self._name)
        runner = StageRunner(
            self._work.stage,
            SecondTry(backend),
            answer,
            tally=answer.tally,
            seed=self._work.seed,
            look_ahead=len(records),
            ordered=not self._work.flags.unordered,
        )
        runner.run(records)
        answer.stats = backend.stats()
        return answer

    def _open(self) -> Backend:
        self._held = ExitStack()
        work = self._work
        return self._held.enter_context(open_backend(work.stage, work.flags, self._models))

    def _replace(self, broken: Backend) -> None:
        """A generator that has failed fails for good: take another, over the same models."""
        with self._lock:
            if self._backend is broken and self._held is not None:
                self._held.close()
                self._backend = self._open()


class SecondTry:
    """A backend that asks once more where a record failed that is not wrong itself."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def submit(self, request: Any, seed: int) -> Pending:
        return _TwoTries(self._backend, request, seed)

    def stats(self) -> GenerationStats:
        return self._backend.stats()


class _TwoTries:
    """An answer to come, of the second try where the first failed."""

    def __init__(self, backend: Backend, request: Any, seed: int) -> None:
        self._again: tuple[Backend, Any, int] | None = (backend, request, seed)
        self._pending = backend.submit(request, seed)

    @property
    def done(self) -> bool:
        if self._pending.done and self._again is not None:
            try:
                self._look(self._pending.result())
            except InvalidRequest:
                return True
        return self._pending.done

    def result(self, timeout: float | None = None) -> Answer:
        answer = self._pending.result(timeout)
        return self._pending.result(timeout) if self._look(answer) else answer

    def _look(self, answer: Answer) -> bool:
        """Ask again if that failed; whether it did."""
        again, self._again = self._again, None
        if again is None or getattr(answer, "error", None) is None:
            return False
        backend, request, seed = again
        self._pending = backend.submit(request, seed)
        return True


def _machine() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
