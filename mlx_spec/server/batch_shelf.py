"""``BatchShelf``: the jobs of ``/v1/batches``: made, listed, changed and cancelled, on disk.

Callers' threads and the one that runs batches meet here, under one lock; whoever waits for a
change waits for its condition.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest, MlxSpecError, OutputError
from mlx_spec.server.batch_job import ENDED, BatchJob
from mlx_spec.server.files import UPLOADED, FileShelf, check_seconds
from mlx_spec.server.store import BATCHES, FILES, NoSuchThing, Store
from mlx_spec.server.store_options import DAY, StoreOptions

INPUT = "input"
_WINDOW = re.compile(r"([1-9]\d{0,4})([mhd])")
_UNITS = {"m": 60, "h": 3600, "d": DAY}
_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512


class TooManyBatches(MlxSpecError):
    """As many as may be wait already."""


@dataclass(frozen=True)
class NewBatch:
    """What a caller asks for.

    Attributes:
        input_file_id, endpoint, completion_window, metadata: as in OpenAI's API; a window may
            have minutes, hours or days.
        seconds: how long its outputs are kept; None for as long as any file.

    Raises:
        InvalidRequest: a window or metadata that are none.
    """

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    seconds: int | None = None

    def __post_init__(self) -> None:
        if not 60 <= self.window <= 30 * DAY:
            raise InvalidRequest(
                f"completion_window is {self.completion_window[:40]!r}, expected '24h', or up to "
                "30 days in m, h or d"
            )
        pairs = self.metadata or {}
        if (
            len(pairs) > _MOST_PAIRS
            or any(len(key) > _MOST_KEY for key in pairs)
            or any(len(value) > _MOST_VALUE for value in pairs.values())
        ):
            raise InvalidRequest(
                f"metadata holds more than {_MOST_PAIRS} pairs, or texts beyond {_MOST_KEY} and "
                f"{_MOST_VALUE} characters"
            )
        check_seconds(self.seconds, "output_expires_after")

    @property
    def window(self) -> int:
        """The same in seconds; 0 where it is none."""
        match = _WINDOW.fullmatch(self.completion_window)
        return int(match[1]) * _UNITS[match[2]] if match else 0


class BatchShelf:
    """Jobs in a store.

    Args:
        store: has them.
        files: has their input and output.
        options: limits.
        now: seconds of Unix time.

    Attributes:
        changed: notified of every change that a caller makes.
    """

    def __init__(
        self,
        store: Store,
        files: FileShelf,
        options: StoreOptions,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.files, self._options, self._now = store, files, options, now
        self.changed = threading.Condition(threading.RLock())
        self._live: BatchJob | None = None  # the one that runs, with counts that are not on disk
        self._troubles: dict[str, str] = {}  # of jobs that the disk lets down for now

    def now(self) -> int:
        """Seconds of Unix time."""
        return int(self._now())

    def create(self, new: NewBatch) -> BatchJob:
        """A job that waits for its turn.

        Raises:
            InvalidRequest: its input is no file for a batch.
            NoSuchThing: its input is not there.
            TooManyBatches: so many wait.
        StoreFull: there is no room for it.
        """
        purpose = self.files.about(new.input_file_id)["purpose"]
        if purpose != UPLOADED:
            raise InvalidRequest(f"the input file's purpose is {purpose!r}, expected 'batch'")
        name, now = self.store.new_id(BATCHES), self.now()
        job = BatchJob(
            id=name,
            endpoint=new.endpoint,
            input_file_id=new.input_file_id,
            completion_window=new.completion_window,
            created_at=now,
            seed=secrets.randbits(32),
            result_ids=(self.store.new_id(FILES), self.store.new_id(FILES)),
            result_seconds=new.seconds,
            metadata=new.metadata,
            times={"expires_at": now + new.window},
        )
        with self.changed:
            waiting = len(self.waiting())
            if waiting >= self._options.max_batches:
                raise TooManyBatches(
                    f"{waiting} batches wait or run, at most {self._options.max_batches} may"
                )
            with self.store.making(BATCHES, name) as folder:
                self.files.link(new.input_file_id, folder / INPUT)
                self.store.note(folder, job.kept)
            self.changed.notify_all()
        return job

    def get(self, name: str) -> BatchJob:
        """A job as it is now.

        Raises:
            NoSuchThing: there is none.
            OutputError: what is kept of it is damaged.
        """
        with self.changed:
            if self._live is not None and self._live.id == name:
                return self._live
            return _job(self.store.about(BATCHES, name))

    def shown(self, job: BatchJob) -> dict[str, Any]:
        """A job as callers see it, with what holds it up."""
        words = self._troubles.get(job.id)
        if words is not None:
            fault = {"code": "server_error", "line": None, "message": words, "param": None}
            job = replace(job, errors=(fault,))
        return job.shown()

    def all(self) -> list[BatchJob]:
        """All of them, the latest first; damaged ones are left out."""
        found = []
        with self.changed:
            for known in self.store.all(BATCHES):
                with suppress(OutputError, NoSuchThing):
                    found.append(self.get(known["id"]))
        return found

    def waiting(self) -> list[BatchJob]:
        """Those that have not ended, in the order of their turns."""
        return [job for job in self.all()[::-1] if job.status not in ENDED]

    def cancel(self, name: str) -> BatchJob:
        """End a job early; what is done stays.

        Raises:
            NoSuchThing: there is none.
            InvalidRequest: it has ended.
        """
        with self.changed:
            job = self.get(name)
            if job.status in ENDED:
                raise InvalidRequest(f"batch {name} is {job.status}, and cannot be cancelled")
            if job.status in ("validating", "in_progress"):
                job = self.move(name, "cancelling")
            self.changed.notify_all()
            return job

    def move(self, name: str, status: str, **changes: Any) -> BatchJob:
        """Note a job's new state, on disk before anybody hears of it; one that is being cancelled
        only ends."""
        with self.changed:
            self._troubles.pop(name, None)
            job = self.get(name)
            if job.status == "cancelling" and status not in ENDED:
                return job
            times = {**job.times, f"{status}_at": self.now()}
            moved = replace(job, status=status, times=times, **changes)
            self.store.note(self.store.place(BATCHES, name), moved.kept)
            if self._live is not None and self._live.id == name:
                self._live = moved
            return moved

    def trouble(self, name: str, words: str) -> None:
        """Tell callers what holds a job up, until it moves on; not on disk, which may be full."""
        with self.changed:
            self._troubles[name] = words

    def show(self, job: BatchJob | None) -> None:
        """Let callers see the counts of the job that runs, which are not on disk yet; its state
        stays what it is."""
        with self.changed:
            if job is not None and self._live is not None and self._live.id == job.id:
                job = replace(
                    self._live, completed=job.completed, failed=job.failed, total=job.total
                )
            self._live = job

    def folder(self, name: str) -> Path:
        """Where a job's files are."""
        return self.store.place(BATCHES, name)

    def sweep(self) -> None:
        """Take away files, and jobs that have ended, whose time is over."""
        self.files.sweep()
        last = self.now() - self._options.store_days * DAY
        for job in self.all():
            if job.status in ENDED and job.created_at < last:
                with suppress(NoSuchThing):
                    self.store.delete(BATCHES, job.id)


def _job(known: Mapping[str, Any]) -> BatchJob:
    try:
        return BatchJob.of(known)
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"[store] what is kept of {known['id']} is damaged ({error})") from error
