"""``BatchWork``: the thread that runs batches, one after another, beside what callers wait for.

Records go to the server's own generator with a priority far below any caller's: they fill rows that
nobody needs, and leave them within a step when somebody does. What is done is what the job's
output says (``pipeline.checkpoint``), so that after a crash each record is there once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlx_spec.batching.closing import Closing
from mlx_spec.errors import GeneratorClosed, MlxSpecError
from mlx_spec.pipeline.backend import Backend
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.records import read_records
from mlx_spec.pipeline.stage_runner import StageRunner, Tally
from mlx_spec.server.api_records import ApiRecords
from mlx_spec.server.batch_input import BatchInput
from mlx_spec.server.batch_job import BatchJob
from mlx_spec.server.batch_results import make_results
from mlx_spec.server.batch_shelf import INPUT, BatchShelf
from mlx_spec.server.store import NoSuchThing, for_want_of_room

LOG = logging.getLogger("mlx_spec.server")
OUTPUT = "out.jsonl"
_IDLE = 60.0  # seconds between two looks at what has expired


class _Halt(Exception):
    """A batch ends before its records do."""


class BatchWork(Closing):
    """A context manager: batches are run while it is entered.

    Args:
        shelf: has the jobs.
        backend: answers records, at a low priority.
        stage: makes the stage of a job.
        rows: most records that are under way at once.
        most: records of a batch.
        leaving: whether the server or its engine ends: what runs is given up, and goes on after a
            restart.
    """

    def __init__(
        self,
        shelf: BatchShelf,
        backend: Backend,
        stage: Callable[[BatchJob], ApiRecords],
        *,
        rows: int,
        most: int,
        leaving: Callable[[], bool],
    ) -> None:
        self._shelf, self._backend, self._stage = shelf, backend, stage
        self._rows, self._most, self._leaving = rows, most, leaving
        self._closed = False
        self._later: dict[str, float] = {}  # jobs that the disk let down: when to try again
        self._thread = threading.Thread(target=self._work, name="mlx-spec-batches", daemon=True)

    def __enter__(self) -> BatchWork:
        self._thread.start()
        return self

    def close(self) -> None:
        """Give up what runs, and wait for the thread's end."""
        with self._shelf.changed:
            self._closed = True
            self._shelf.changed.notify_all()
        self._thread.join()

    @property
    def _ends(self) -> bool:
        return self._closed or self._leaving()

    def _work(self) -> None:
        while not self._ends:
            try:
                job = self._next()
                if job is not None:
                    self._run(job)
            except GeneratorClosed:
                return
            except Exception as error:  # the store as a whole: try again later
                LOG.error("batches: %s", error, exc_info=not isinstance(error, MlxSpecError))
                self._pause()
            finally:
                self._shelf.show(None)

    def _next(self) -> BatchJob | None:
        """The job whose turn it is; waits a while for one."""
        self._shelf.sweep()
        with self._shelf.changed:
            for job in self._shelf.waiting():
                if self._shelf.now() >= self._later.get(job.id, 0):
                    return job
            self._pause()
        return None

    def _pause(self) -> None:
        with self._shelf.changed:
            if not self._ends:
                self._shelf.changed.wait(_IDLE)

    def _run(self, job: BatchJob) -> None:
        self._shelf.show(job)
        try:
            self._advance(job)
        except GeneratorClosed:
            raise
        except NoSuchThing:
            LOG.warning("batch %s was taken out of the store while it ran", job.id)
        except Exception as error:
            if self._ends:  # the engine has failed: the job waits for the next start
                return
            known = isinstance(error, MlxSpecError)
            LOG.error("batch %s: %s", job.id, error, exc_info=None if known else error)
            words = str(error) if known else "an internal error; the server's log says more"
            if for_want_of_room(error):
                self._later[job.id] = self._shelf.now() + _IDLE
                self._shelf.trouble(job.id, f"{words}; it goes on when there is room")
            else:
                fault = {"code": "server_error", "line": None, "message": words, "param": None}
                self._shelf.move(job.id, "failed", errors=(fault,))

    def _advance(self, job: BatchJob) -> None:
        """From where it is to its end."""
        folder = self._shelf.folder(job.id)
        if not job.total:
            found = BatchInput(job.endpoint, self._most)
            found.look(folder / INPUT)
            if found.faults:
                self._shelf.move(job.id, "failed", errors=tuple(found.faults))
                return self._clear(folder)
            self._shelf.show(replace(job, total=found.total))
        if job.status == "validating" and not self._over(job):
            self._shelf.move(job.id, "in_progress")
        if job.status != "finalizing":
            try:
                self._decode(self._shelf.get(job.id), folder)
            except _Halt:
                if self._ends:
                    return None
            early = {"ending": "expired"} if self._over(job) else {}
            self._shelf.move(job.id, "finalizing", **early)
        job = self._shelf.get(job.id)
        ending = "cancelled" if job.status == "cancelling" else job.ending
        results = make_results(self._shelf.files, replace(job, ending=ending), folder, OUTPUT)
        self._shelf.move(job.id, ending, **results)
        return self._clear(folder)

    def _over(self, job: BatchJob) -> bool:
        return self._shelf.now() >= job.expires_at

    def _decode(self, job: BatchJob, folder: Path) -> None:
        """Run what is not done; a half-written line goes, whatever becomes of the job.

        Raises:
            _Halt: the job, or the server, ends before its records do.
        """
        output = Checkpoint(folder / OUTPUT, "jsonl", {"batch": job.id}, job.seed, resume=True)
        tally, before = Tally(), (len(output), output.failures.count)

        def look() -> None:
            failed = before[1] + tally.failed
            done = before[0] + tally.written
            self._shelf.show(replace(job, completed=done - failed, failed=failed))
            cancelled = self._shelf.get(job.id).status == "cancelling"
            if self._ends or cancelled or self._over(job):
                raise _Halt

        try:
            output.begin()
            look()
            runner = StageRunner(
                self._stage(job),
                self._backend,
                output,
                tally=tally,
                seed=job.seed,
                look_ahead=self._rows,
                watch=look,
            )
            records = read_records(folder / INPUT, "jsonl")
            runner.run(one for one in records if one.number not in output)
        finally:
            output.close()

    def _clear(self, folder: Path) -> None:
        """What an ended job needs no more; a crash before this leaves it until the job goes."""
        for path in (folder / INPUT, *folder.glob(f"{OUTPUT}*")):
            path.unlink(missing_ok=True)
