"""An output that survives ``kill -9``: what is done is what the file says.

Every record is one line that carries its number, written with one call; beside the output lies a
small file (``OUT.run.json``) with a hash of the input, the options that decide the text, and the
seed. To resume is to cut off a half-written last line, to read the numbers of the whole ones, and
to append. No other state exists that a crash could tear from the output.

Tables (CSV, Parquet) cannot be appended to safely: their records collect as JSON lines in
``OUT.part.jsonl`` and become the table at the end, in one rename. So do those of a stage that
drops some, in ``OUT.all.jsonl``, which stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_spec.errors import OutputError
from mlx_spec.pipeline import records
from mlx_spec.pipeline import retry as retries
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.failures import FAILED, NUMBER, Failures

DROPPED = "_dropped"
# Of the identity: what no failed record is run again with another of.
_FOR_ALL = ("input", "stage")


class Checkpoint:
    """One output file and what is known of its run.

    Making it only looks, so that a run with other options is refused before a model is loaded;
    :meth:`begin` changes files.

    Args:
        out: the output file.
        format: jsonl, csv or parquet.
        identity: what must be equal for a resume, as JSON values: the input's hash, the options.
        seed: the user's, or None to draw one (a resume goes on with the one drawn).
        resume, overwrite: what to do with an output that exists.
        retry: with ``resume``, records that failed count as not done. The options may then differ
            from the first run's, for them.
        dropping: leave out of the output what the stage dropped; all of it stays, with the
            reasons, in ``OUT.all.jsonl``.

    Raises:
        OutputError: it exists and neither is given, or it is not this run's.
    """

    def __init__(
        self,
        out: Path,
        format: str,
        identity: dict[str, Any],
        seed: int | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        retry: bool = False,
        dropping: bool = False,
    ) -> None:
        if out.exists() and not out.is_file():
            raise OutputError(f"[batch] {out} is not a regular file; - writes to stdout")
        self.out, self.format = out, format
        self._dropping = dropping
        # Where the lines collect, if the output is not just these lines.
        beside = "all" if dropping else "part" if format != "jsonl" else None
        self.work = out if beside is None else out.with_name(f"{out.name}.{beside}.jsonl")
        self._sidecar = out.with_name(f"{out.name}.run.json")
        # As it comes back from the file: tuples are lists there.
        self._identity = json.loads(json.dumps(identity))
        self._fd: int | None = None
        self.complete = False
        self.failures = Failures()
        self._done = bytearray()
        self._keep = 0
        self._overwrite, self._retry = overwrite, retry
        # Failed records that are to run again; and whether lines were, so that order is to mend.
        self._again, self._retried = 0, False
        self._fresh = overwrite or not self._exists()
        self.seed = secrets.randbits(32) if seed is None else seed
        if self._fresh:
            return
        if not resume:
            raise OutputError(
                f"[batch] {out} exists; --resume goes on with it, --overwrite begins again"
            )
        self._check_identity(seed)
        if not self.complete:
            self._scan()
        elif retry:
            self._scan_whole()

    # --- looking ---

    def __len__(self) -> int:
        """Records that are done."""
        return sum(self._done)

    @property
    def done(self) -> bytes:
        """For each record's number 1 if it is done; of a table that is complete nothing."""
        return bytes(self._done)

    def __contains__(self, number: int) -> bool:
        return self.complete or (number < len(self._done) and bool(self._done[number]))

    def _exists(self) -> bool:
        """Whether there is anything to lose; an empty file is not."""
        return any(path.exists() and path.stat().st_size for path in {self.out, self.work})

    def _check_identity(self, seed: int | None) -> None:
        try:
            known = json.loads(self._sidecar.read_text(encoding="utf-8"))
            identity, stored = known["identity"], known["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"[resume] {self.out} was not begun by this command ({self._sidecar.name} is "
                "missing or damaged); --overwrite begins again"
            ) from error
        differing = [
            _difference(name, identity.get(name), self._identity.get(name))
            for name in sorted(identity.keys() | self._identity.keys())
            if identity.get(name) != self._identity.get(name)
            and (name in _FOR_ALL or not self._retry)
        ]
        if seed is not None and seed != stored:
            differing.append(f"seed was {stored}, now {seed}")
        if differing:
            raise OutputError(f"[resume] {self.out} belongs to another run: {'; '.join(differing)}")
        self.seed = stored
        self._retried = bool(known.get("retried"))
        # Of a whole table no lines are left to count; lines of JSON are asked themselves.
        if self.work != self.out and known.get("complete"):
            self.complete, self.failures.count = True, int(known.get("failed", 0))

    def _scan(self) -> None:
        """Which records are done, and how much of the file is whole lines."""
        if not self.work.exists():
            return
        with self.work.open("rb") as file:
            for place, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    number = int(record[NUMBER])
                except (ValueError, KeyError, TypeError) as error:
                    raise OutputError(
                        f"[resume] {self.work} line {place} was not written by this command; "
                        "--overwrite begins again"
                    ) from error
                if number in self:
                    raise OutputError(f"[resume] {self.work} line {place}: record {number} twice")
                self._look_at(number, record)
                self._keep += len(line)

    def _scan_whole(self) -> None:
        """Which records of a finished table are to run again; none leaves it as it is."""
        self.failures, self.complete = Failures(), False
        if self._dropping:  # its lines stay beside it
            self._scan()
        else:
            for record in retries.table_results(self.out, self.format):
                self._look_at(record[NUMBER], record)
        self.complete = not self._again

    def _look_at(self, number: int, record: dict[str, Any]) -> None:
        """Count one record of an earlier run as done, or as one to run again."""
        if self._retry and record.get(FAILED):
            self._again += 1
            return
        self._mark(number)
        self.failures.add(record)

    def _mark(self, number: int) -> None:
        if number >= len(self._done):
            self._done.extend(bytes(max(number + 1 - len(self._done), len(self._done))))
        self._done[number] = 1

    # --- writing ---

    def begin(self) -> None:
        """Open the output for this run alone; cut off what is not whole.

        Raises:
            OutputError: another process writes to it, or it cannot be written.
        """
        if self.complete:
            if not self._dropping:
                self.work.unlink(missing_ok=True)  # a crash may have left it beside the table
            return
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.work, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._again:
                self._take_out_failed()
            if self._fresh and not self._overwrite and os.fstat(self._fd).st_size:
                raise OutputError(f"[batch] {self.work} was written meanwhile by another process")
            os.ftruncate(self._fd, self._keep)
            if self._fresh:
                # In this order no crash leaves old lines beside a new run's options.
                if self.out != self.work:
                    self.out.unlink(missing_ok=True)
                self._note(complete=False)
        except BlockingIOError as error:
            raise OutputError(f"[batch] another process is writing {self.work}") from error
        except OSError as error:
            raise OutputError(f"[batch] {self.work}: {error.strerror}") from error

    def _take_out_failed(self) -> None:
        """Leave the lines of good records only, in a new file that is locked as the old one."""
        self._retried, old = True, self._fd
        self._note(complete=False)
        if self.work != self.out and not os.path.getsize(self.work):
            lines = retries.good_table_lines(self.out, self.format)
        else:
            lines = retries.good_lines(self.work)
        retries.rewrite(self.work, lines)
        self._fd = os.open(self.work, os.O_RDWR | os.O_APPEND)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._keep = os.fstat(self._fd).st_size
        assert old is not None
        os.close(old)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, which carries its number."""
        assert self._fd is not None
        line = memoryview(records.to_line(record))
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            raise OutputError(
                f"[batch] {self.work}: {error.strerror}; what is done stays, --resume goes on"
            ) from error
        self._mark(record[NUMBER])
        self.failures.add(record)

    def finish(self, *, complete: bool) -> None:
        """Turn the lines into the table asked for; ``complete``: the input had no more records."""
        if self.complete:
            return
        if self._retried and complete:
            retries.sort_lines(self.work)
        if self.work == self.out:
            return
        try:
            stored = StoredRecords(self.work, dropped=not self._dropping)
            export(stored, self.out, self.format)
        except (OSError, OutputError) as error:
            raise OutputError(f"{error}; all records are in {self.work}") from error
        if complete:
            self._note(complete=True)
            if not self._dropping:
                self.work.unlink()

    def close(self) -> None:
        """Let go of the file. Doing it twice does no harm."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _note(self, *, complete: bool) -> None:
        """Write the small file, whole or not at all."""
        partial = self._sidecar.with_name(f"{self._sidecar.name}.tmp")
        known = {
            "identity": self._identity,
            "seed": self.seed,
            "complete": complete,
            "failed": self.failures.count,
            "retried": self._retried,
        }
        partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._sidecar)


def kept_seed(out: Path) -> int | None:
    """The seed that an earlier run of an output had; None where there was none."""
    try:
        seed = json.loads(out.with_name(f"{out.name}.run.json").read_text(encoding="utf-8"))["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seed if isinstance(seed, int) else None


def _difference(name: str, was: Any, now: Any) -> str:
    """How an option changed, in words."""
    if name == "input":  # hashes say nothing to a person
        return "the input, or a stage before this one, was another"
    return f"{name} was {was!r}, now {now!r}"


class StoredRecords:
    """The records of a file that ``Checkpoint`` wrote; can be walked again and again.

    Args:
        path: JSON lines.
        dropped: give out records that a filter dropped, too.
    """

    def __init__(self, path: Path, *, dropped: bool = True) -> None:
        self._path, self._dropped = path, dropped

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            for line in file:
                record: dict[str, Any] = json.loads(line)
                if self._dropped or not record.get(DROPPED):
                    yield record
