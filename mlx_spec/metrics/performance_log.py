"""``PerformanceLog``: a listener that writes what a run did as JSON lines (see ``log_lines``).

In the step an event is only put into a queue. Summing up, encoding and writing happen in a thread
of its own, which mostly runs while the stepping thread waits for the device.
"""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlx_spec.closing import Closing
from mlx_spec.errors import MlxSpecError
from mlx_spec.events import ErrorHappened, Event, StageDone
from mlx_spec.metrics.log_file import LogFile
from mlx_spec.metrics.log_lines import LogLines, Record
from mlx_spec.platform import describe

FORMAT = 1

# A disk that hangs must not fill the memory.
_MOST_QUEUED = 100_000


@dataclass
class StageProgress:
    """Counted up by whoever runs a stage."""

    items: int = 0
    errors: int = 0


class PerformanceLog(Closing):
    """Writes the events of engines and pipelines under a folder; a context manager.

    Example::

        with PerformanceLog("performance_logs") as log:
            result = generate(model, tokenizer, "def read_", listeners=[log])

    Args:
        folder: where the files go; made if it is not there.
        notes: anything that should stand in the header (the models' names, a purpose).
        max_bytes: size at which a file is followed by the next.
        keep: most files of this run, the oldest go; None keeps all.
        interval: seconds that one ``inference`` line covers.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] = "performance_logs",
        notes: Mapping[str, Any] | None = None,
        *,
        max_bytes: int = 2**24,
        keep: int | None = 64,
        interval: float = 0.5,
    ) -> None:
        started = datetime.now().astimezone()
        run = f"{started:%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(2)}"
        header: Record = {
            "kind": "header",
            "format": FORMAT,
            "run": run,
            "started": started.isoformat(timespec="seconds"),
            **_machine(),
            "notes": dict(notes or {}),
        }
        self._interval = interval
        self._lines = LogLines(header, time.perf_counter(), interval)
        self._file = LogFile(Path(folder).expanduser(), run, max_bytes=max_bytes, keep=keep)
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._dropped = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    @property
    def lost(self) -> int:
        """Lines that could not be written, and events that found the queue full."""
        return self._file.lost + self._dropped

    def __call__(self, event: Event) -> None:
        """Take one event; never waits."""
        if self._closed:
            return
        if self._thread is None:
            self._start()
        if self._queue.qsize() < _MOST_QUEUED:
            self._queue.put(event)
        else:
            self._dropped += 1

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Time a stage of a pipeline; count its items on what ``with`` gives."""
        begun, progress = time.perf_counter(), StageProgress()
        try:
            yield progress
        except Exception as error:
            self(ErrorHappened(time.perf_counter(), f"stage {name}", repr(error)))
            raise
        finally:
            now = time.perf_counter()
            self(StageDone(now, name, progress.items, now - begun, progress.errors))

    def close(self) -> None:
        """Write what is left. Later events are not heard. Doing it twice does no harm."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()
        atexit.unregister(self.close)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="mlx-spec-log", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            try:
                event = self._queue.get(timeout=self._interval)
            except queue.Empty:
                self._write(self._lines.old(time.perf_counter()))
                continue
            if event is None:
                break
            self._write(self._lines.of(event))
        self._write(self._lines.end(time.perf_counter(), self.lost))
        self._file.close()

    def _write(self, lines: Iterable[Record]) -> None:
        for line in lines:
            self._file.write(self._lines.header, line)


def _machine() -> dict[str, Any]:
    """Machine and versions for the header; a log is no reason to fail."""
    try:
        facts = asdict(describe())
    except MlxSpecError as error:
        return {"machine": {"error": str(error)}, "versions": {}}
    versions = {**facts.pop("versions"), "python": facts.pop("python")}
    return {"machine": facts, "versions": versions}
