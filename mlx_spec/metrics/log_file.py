"""``LogFile``: JSON lines to files that rotate by size.

Every line goes to the file in one write, so a kill at any moment leaves whole lines and at most
one cut at the end. A full disk or a folder that cannot be written costs lines, which are counted,
and one warning; it is tried again in a new file a while later, never in the middle of a broken
line. It owns no thread and no queue.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from pathlib import Path

from mlx_spec.metrics.log_lines import Line

_LOST = {"where": "PerformanceLog", "error": "lines lost before this one"}


class LogFile:
    """The files of one run.

    Args:
        folder: where; made if it is not there.
        name: the files are ``name-000.jsonl``, ``name-001.jsonl``, ...
        max_bytes: a file that would grow past this is followed by a new one.
        keep: most files of this run; the oldest are deleted. None keeps all.
        retry: seconds until a failed write is tried again.

    Attributes:
        lost: records that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        max_bytes: int = 2**24,
        keep: int | None = None,
        retry: float = 30.0,
    ) -> None:
        self.lost = 0
        self._folder, self._name = folder, name
        self._max_bytes, self._keep, self._retry = max_bytes, keep, retry
        self._file: int | None = None
        self._files: list[Path] = []
        self._part = 0
        self._size = 0
        self._not_before = 0.0
        self._warned = False
        self._told = 0  # of the lost ones, how many the log itself speaks of

    def write(self, header: Line, record: Line) -> None:
        """Write a record; never raises for a disk's sake.

        ``header`` becomes the first line (with its ``part``) of the file that this record begins.
        """
        if time.monotonic() < self._not_before:
            self.lost += 1
            return
        try:
            line = _encode(record)
            if self._file is not None and self._size + len(line) > self._max_bytes:
                self._shut()
            if self._file is None:
                self._open(header)
            if self.lost > self._told:
                note = {"kind": "error", "t": record.get("t"), **_LOST}
                self._append(_encode({**note, "count": self.lost - self._told}))
                self._told = self.lost
            self._append(line)
        except OSError as error:
            self._shut()
            self._not_before = time.monotonic() + self._retry
            self._warn(error)
            self.lost += 1

    def _open(self, header: Line) -> None:
        """Begin the next file; those that are too many go."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part, self._part = self._part, self._part + 1
        path = self._folder / f"{self._name}-{part:03d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._size = 0
        self._files.append(path)
        self._append(_encode({**header, "part": part}))
        while self._keep is not None and len(self._files) > self._keep:
            self._files.pop(0).unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._size += len(line)

    def close(self) -> None:
        """No record follows. Doing it twice does no harm."""
        self._shut()

    def _shut(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def _warn(self, error: OSError) -> None:
        if self._warned:
            return
        self._warned = True
        # Where warnings are errors, this thread has still to go on.
        with contextlib.suppress(RuntimeWarning):
            warnings.warn(
                f"[PerformanceLog] cannot write to {self._folder} ({error.strerror}); the run goes "
                f"on, lines are lost, tried again every {self._retry:g} s",
                RuntimeWarning,
                stacklevel=2,
            )


def _encode(record: Line) -> bytes:
    """One line; what JSON has no words for is written as text."""
    try:
        text = json.dumps(record, separators=(",", ":"), default=str)
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no text, circles
        broken = {"kind": "error", "t": record.get("t"), "where": "PerformanceLog"}
        text = json.dumps({**broken, "error": f"{record.get('kind')}: {error!r}"}, default=str)
    return text.encode() + b"\n"
