"""Records in and out: JSON lines, CSV, Parquet; files or stdin.

A reader yields every record with its number, and a bad one as a record that carries its error, so
that one broken line never ends a run. Nothing here knows models or prompts; memory holds one
record (Parquet: one row group's slice) at a time.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mlx_spec.errors import InvalidRequest, OutputError

FORMATS = ("jsonl", "csv", "parquet")
STDIO = Path("-")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PARQUET_ROWS = 1024
_SHOWN = 500  # characters kept of a line that could not be read
# A field of a CSV file may be a whole document; the module's own limit is 128 KiB.
csv.field_size_limit(2**31 - 1)


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
            f"{', '.join(_SUFFIXES)} or give --format"
        )
    return known or given or "jsonl"


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
            yield from _READERS[format](sys.stdin.buffer)
        else:
            with path.open("rb") as file:
                yield from _READERS[format](file)
    except OSError as error:
        raise InvalidRequest(f"[records] {path}: {error.strerror or error}") from error


def fingerprint(path: Path) -> tuple[str, int]:
    """A hash of the file's bytes and its number of lines, in one pass.

    Raises:
        InvalidRequest: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InvalidRequest(f"[records] {path} is not a regular file; - reads stdin")
    digest, lines, last = hashlib.blake2b(digest_size=16), 0, b"\n"
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                lines += block.count(b"\n")
                last = block[-1:]
    except OSError as error:
        raise InvalidRequest(f"[records] {path}: {error.strerror}") from error
    return digest.hexdigest(), lines + (last != b"\n")


def expected(path: Path, format: str, lines: int) -> int:
    """About how many records a file of so many lines holds, for a progress bar."""
    if format == "parquet":
        return int(import_parquet().read_metadata(path).num_rows)
    return lines - 1 if format == "csv" else lines


def to_line(record: dict[str, Any]) -> bytes:
    """One JSON line. What JSON has no type for (dates of a Parquet file) becomes text."""
    text = json.dumps(record, ensure_ascii=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON allows as an escape only
        return json.dumps(record, default=str).encode() + b"\n"


def _read_jsonl(file: BinaryIO) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> Record:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({error})"
    else:
        if isinstance(value, dict):
            return Record(number, value)
        reason = f"a JSON {type(value).__name__}, expected an object"
    start = line.decode("utf-8", "replace").strip()[:_SHOWN]
    return Record(number, {"_input": start}, f"[records] line {number}: {reason}")


def _read_csv(file: BinaryIO) -> Iterator[Record]:
    # Bytes that are no UTF-8 travel as lone surrogates, so that they spoil one row only.
    text = (line.decode("utf-8", "surrogateescape") for line in file)
    rows = csv.reader(_without_mark(text), strict=True)
    header = next(rows, None)
    if not header:
        return
    if len(set(header)) != len(header) or not all(header):
        raise InvalidRequest(f"[records] CSV header {header}: names must be unique and not empty")
    number = 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(number, {}, f"[records] row {number}: not CSV ({error})")
            continue
        if not row:  # a blank line
            number -= 1
            continue
        yield _make_row(number, header, row)


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    """The lines without the byte order mark that spreadsheets put first."""
    first = next(lines, "")
    yield first.removeprefix("\ufeff")
    yield from lines


def _make_row(number: int, header: list[str], row: list[str]) -> Record:
    fields = dict(zip(header, row, strict=False))
    if len(row) != len(header):
        reason = f"{len(row)} fields, the header has {len(header)}"
    elif any("\udc80" <= letter <= "\udcff" for value in row for letter in value):
        reason = "not UTF-8"
    else:
        return Record(number, fields)
    return Record(number, fields, f"[records] row {number}: {reason}")


def _read_parquet(path: Path) -> Iterator[Record]:
    if path == STDIO:
        raise InvalidRequest("[records] Parquet cannot be read from stdin; give a file")
    parquet = import_parquet()
    numbers = itertools.count(1)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for fields in batch.to_pylist():
                    yield Record(next(numbers), fields)
    except ValueError as error:  # ArrowInvalid is one
        raise InvalidRequest(f"[records] {path}: not Parquet ({error})") from error


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


def export(records: Iterable[dict[str, Any]], path: Path, format: str) -> None:
    """Write records to a table file or JSON lines, whole or not at all.

    ``records`` is walked twice for a table, whose columns are only known at its end; give
    something that can be iterated again.
    """
    partial = path.with_name(f"{path.name}.tmp")
    writer = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}[format]
    writer(records, partial)
    os.replace(partial, path)


def _write_jsonl(records: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(to_line(record) for record in records)


def _columns(records: Iterable[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record))
    return list(names)


def _write_csv(records: Iterable[dict[str, Any]], path: Path) -> None:
    # errors: a lone surrogate cannot be written as UTF-8; its escape can.
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.DictWriter(file, _columns(records), lineterminator="\n")
        rows.writeheader()
        for record in records:
            rows.writerow({name: _cell(value) for name, value in record.items()})


def _cell(value: Any) -> Any:
    """What a CSV cell holds: text and numbers as they are, nested values as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _write_parquet(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Slice by slice; the columns and their types are those of all slices together."""
    import_parquet()
    import pyarrow
    import pyarrow.parquet

    names = _columns(records)

    def tables() -> Iterator[Any]:
        for rows in _slices(records, _PARQUET_ROWS):
            yield pyarrow.table({name: [row.get(name) for row in rows] for name in names})

    try:
        schema = pyarrow.unify_schemas(
            [table.schema for table in tables()], promote_options="permissive"
        )
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for table in tables():
                writer.write_table(table.cast(schema))
    except pyarrow.ArrowException as error:
        raise OutputError(f"[records] {path}: columns of mixed types ({error})") from error


def _slices(records: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(records)
    while rows := list(itertools.islice(iterator, size)):
        yield rows
