"""Records in: JSON lines, CSV, Parquet; files or stdin. (``export`` writes them.)

A reader yields every record with its number, and a bad one as a record that carries its error, so
that one broken line never ends a run. Nothing here knows models or prompts; memory holds one
record (Parquet: one row group's slice) at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.csv_rows import read_rows
from mlx_spec.pipeline.values import plain, to_json
from mlx_spec.text_files import split_returns, utf8_lines

FORMATS = ("jsonl", "csv", "parquet")
STDIO = Path("-")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_LINES = " (jsonl is an object a line; jq -c '.[]' makes that of a list)"
_WORDS: dict[type, str] = {
    list: "a JSON list (jq -c '.[]' makes lines of one)",
    str: "a JSON text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    type(None): "null",
}
PARQUET_ROWS = 1024
_SHOWN = 500  # characters kept of a line that could not be read


@dataclass(frozen=True)
class Record:
    """One record of the input.

    Attributes:
        number: its line (JSON lines) or row (CSV, Parquet), from 1; it names the record.
        fields: its fields; of an unreadable one what there is.
        error: why it could not be read, or None.
    """

    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def format_of(path: Path, given: str | None) -> str:
    """The format that a name's suffix tells; ``given`` where it tells none.

    Raises:
        InvalidRequest: an unknown format or suffix.
    """
    if given is not None and given not in FORMATS:
        raise InvalidRequest(f"[records] format {given!r}, expected one of {', '.join(FORMATS)}")
    known = _SUFFIXES.get(path.suffix.lower())
    if known is None and given is None and path != STDIO:
        raise InvalidRequest(
            f"[records] {path}: the suffix {path.suffix!r} tells no format; rename it to one of "
            f"{', '.join(_SUFFIXES)} or give --format{_LINES if path.suffix == '.json' else ''}"
        )
    return known or given or "jsonl"


Reader: TypeAlias = Callable[[], Iterator[Record]]
"""Gives the records of an input from its beginning, as often as it is asked; can be pickled."""


def read_records(path: Path, format: str) -> Iterator[Record]:
    """Yield the records of a file, or of stdin for ``-``.

    Raises:
        InvalidRequest: a file that cannot be read at all, or a bad header.
    """
    try:
        if format == "parquet":
            yield from _read_parquet(path)
        elif path == STDIO:
            if sys.stdin is None:  # closed by whoever started the process
                raise InvalidRequest("[records] stdin is closed; give a file")
            yield from _READERS[format](_stdin(), _what(path))
        else:
            with path.open("rb") as file:
                yield from _READERS[format](file, _what(path))
    except OSError as error:
        raise InvalidRequest(f"[records] {path}: {error.strerror or error}") from error


def _stdin() -> BinaryIO:
    """Its bytes, over a descriptor of their own.

    A thread that waits for a pipe holds the lock of its reader; python aborts at exit if that is
    ``sys.stdin``.
    """
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (AttributeError, OSError, ValueError):  # no real file: a notebook, a test
        return sys.stdin.buffer


def fingerprint(path: Path) -> str:
    """A hash of the file's bytes.

    Raises:
        InvalidRequest: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InvalidRequest(f"[records] {path} is not a regular file; - reads stdin")
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InvalidRequest(f"[records] {path}: {error.strerror}") from error
    return digest.hexdigest()


def count(path: Path, format: str) -> int:
    """How many records a file holds, bad ones included, for a progress bar.

    Raises:
        InvalidRequest: as :func:`read_records`; so a bad file is known before a model is loaded.
    """
    if format == "parquet":
        with _parquet_errors(path):
            return int(import_parquet().read_metadata(path).num_rows)
    with path.open("rb") as file:
        if format == "csv":
            return sum(1 for _ in read_rows(file, _what(path)))
        return sum(1 for line in split_returns(utf8_lines(file, _what(path))) if line.strip())


def to_line(record: dict[str, Any]) -> bytes:
    """One line of strict JSON; see ``values`` for what JSON has no type for."""
    return to_json(record).encode() + b"\n"


def _read_jsonl(file: BinaryIO, what: str) -> Iterator[Record]:
    # In JSON a raw return is never part of a value.
    for number, line in enumerate(split_returns(utf8_lines(file, what)), start=1):
        if line.strip():
            yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> Record:
    try:
        value = plain(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno})"
    except InvalidRequest as error:
        reason = str(error)
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({error})"
    else:
        if isinstance(value, dict):
            return Record(number, value)
        reason = f"{_WORDS[type(value)]}, expected an object a line"
    start = line.decode("utf-8", "replace").strip()[:_SHOWN]
    return Record(number, {"_input": start}, f"[records] line {number}: {reason}")


def _read_csv(file: BinaryIO, what: str) -> Iterator[Record]:
    for number, (fields, reason) in enumerate(read_rows(file, what), start=1):
        error = None if reason is None else f"[records] row {number}: {reason}"
        yield Record(number, fields, error)


def _what(path: Path) -> str:
    return f"[records] {'stdin' if path == STDIO else path}"


def _read_parquet(path: Path) -> Iterator[Record]:
    if path == STDIO:
        raise InvalidRequest("[records] Parquet cannot be read from stdin; give a file")
    parquet = import_parquet()
    numbers = itertools.count(1)
    with _parquet_errors(path), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(PARQUET_ROWS):
            for fields in _to_microseconds(batch).to_pylist():
                yield _plain_record(next(numbers), fields)


def _plain_record(number: int, fields: Any) -> Record:
    try:
        return Record(number, plain(fields))
    except InvalidRequest as error:
        return Record(number, {}, str(error))


def _to_microseconds(batch: Any) -> Any:
    """pandas' times, which pyarrow gives out only where pandas is."""
    import pyarrow

    for index, column in enumerate(batch.schema):
        if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":
            kind = pyarrow.timestamp("us", column.type.tz)
            batch = batch.set_column(index, column.name, batch.column(index).cast(kind, safe=False))
    return batch


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InvalidRequest:
        raise
    except (ValueError, OSError, NotImplementedError) as error:  # as ArrowInvalid and others are
        known = getattr(error, "strerror", None)  # no such file, no right to read it
        raise InvalidRequest(f"[records] {path}: {known or f'not Parquet ({error})'}") from error


def import_parquet() -> Any:
    """pyarrow's Parquet module, or what to install."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidRequest(
            "[records] Parquet needs pyarrow: pip install 'mlx-spec[parquet]'"
        ) from error
    return pyarrow.parquet


_READERS = {"jsonl": _read_jsonl, "csv": _read_csv}
