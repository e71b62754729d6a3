"""``PerformanceLog``: a listener that writes what a run did as JSON lines (see ``log_lines``).

In the step an event is only appended to a list. Summing up, encoding and writing happen in a thread
of its own, which looks there a few times a second: waking it at every event cost the stepping
thread more than all the rest.
"""

from __future__ import annotations

import atexit
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from mlx_spec.errors import MlxSpecError
from mlx_spec.events import Event
from mlx_spec.metrics.log_file import LogFile
from mlx_spec.metrics.log_lines import FORMAT, Line, LogLines
from mlx_spec.platform import describe

# A disk that hangs must not fill the memory.
_MOST_QUEUED = 100_000
# Seconds between two looks at what has happened: what a kill may cost.
_LONGEST_PAUSE = 0.1


class PerformanceLog(AbstractContextManager["PerformanceLog"]):
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
        header: Line = {
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
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._closed = False
        self._ending = threading.Event()
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
        if len(self._events) < _MOST_QUEUED:
            self._events.append(event)
        else:
            self._dropped += 1

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left. Later events are not heard. Doing it twice does no harm."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._ending.set()
            thread.join()
        atexit.unregister(self.close)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="mlx-spec-log", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        pause = min(self._interval, _LONGEST_PAUSE)
        while not self._ending.wait(pause):
            self._take()
            self._write(self._lines.old(time.perf_counter()))
        self._take()
        self._write(self._lines.end(time.perf_counter(), self.lost))
        self._file.close()

    def _take(self) -> None:
        """What has happened since the last look."""
        while self._events:
            self._write(self._lines.of(self._events.popleft()))

    def _write(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._file.write(self._lines.header, line)


def _machine() -> dict[str, Any]:
    """Machine and versions for the header; a log is no reason to fail."""
    try:
        machine = asdict(describe())
    except MlxSpecError as error:
        return {"machine": {"error": str(error)}, "versions": {}}
    versions = {**machine.pop("versions"), "python": machine.pop("python")}
    return {"machine": machine, "versions": versions}
