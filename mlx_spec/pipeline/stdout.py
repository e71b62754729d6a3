"""Results on stdout: JSON lines as they come, CSV at the end. Nothing to resume.

It has the methods of ``Checkpoint``, so that a command needs to know only one of them.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.pipeline import records
from mlx_spec.pipeline.checkpoint import DROPPED, StoredRecords
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.failures import Failures


class StdoutOutput:
    """Takes results for stdout.

    Args:
        format: jsonl or csv.
        seed: the user's, or None to draw one.
        dropping: leave out what the stage dropped.

    Raises:
        InvalidRequest: a format that only a file can hold, or there is no stdout.
    """

    def __init__(self, format: str, seed: int | None, *, dropping: bool = False) -> None:
        if format == "parquet":
            raise InvalidRequest("[batch] Parquet cannot be written to stdout; give a file")
        if sys.stdout is None:  # closed by whoever started the process
            raise InvalidRequest("[batch] stdout is closed; give a file")
        self.complete = False
        self.seed = secrets.randbits(32) if seed is None else seed
        self.failures = Failures()
        self._dropping = dropping
        self._table = format == "csv"
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def done(self) -> bytes:
        """No record is."""
        return b""

    def __contains__(self, number: int) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def begin(self) -> None:
        """Make room for a table's records, whose columns are known at their end."""
        if self._table:
            self._folder = tempfile.TemporaryDirectory(prefix="mlx-spec-")
            self._rows = (Path(self._folder.name) / "rows.jsonl").open("wb")

    def write(self, record: dict[str, Any]) -> None:
        """Show one record, or keep it for the table.

        Raises:
            OutputError: there is no room for it.
            BrokenPipeError: nobody reads any more.
        """
        if self._dropping and record.get(DROPPED):
            return
        line = records.to_line(record)
        if self._table:
            self._rows.write(line)
        else:
            _show(line)
        self.failures.add(record)

    def finish(self, *, complete: bool) -> None:
        """Show the table."""
        if self._folder is not None:
            self._rows.close()
            table = Path(self._folder.name) / "rows.csv"
            export(StoredRecords(Path(self._rows.name)), table, "csv")
            _show(table.read_bytes())

    def close(self) -> None:
        """Remove what was kept."""
        if self._folder is not None:
            self._rows.close()
            self._folder.cleanup()
            self._folder = None


def _show(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What could not be written is still in the buffer, and would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"[batch] stdout: {error.strerror}") from error
