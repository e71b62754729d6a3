"""Records out: a table (CSV, Parquet) or JSON lines, whole or not at all."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mlx_spec.errors import OutputError
from mlx_spec.pipeline.records import PARQUET_ROWS, import_parquet, to_line
from mlx_spec.pipeline.values import encodable


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
        rows = csv.DictWriter(_UnixLines(file), _columns(records), lineterminator="\r\n")
        rows.writeheader()
        for record in records:
            rows.writerow({name: _cell(value) for name, value in record.items()})


class _UnixLines:
    """Takes rows with both line ends, since python quotes only what holds one of a row's own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        """One row, as the ``csv`` module gives them."""
        return self._file.write(row.removesuffix("\r\n") + "\n")


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
        for rows in _slices(records, PARQUET_ROWS):
            columns = {name: [encodable(row.get(name)) for row in rows] for name in names}
            yield pyarrow.table({encodable(name): cells for name, cells in columns.items()})

    try:
        # The empty one is for no records at all.
        schemas = [pyarrow.schema([]), *(table.schema for table in tables())]
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for table in tables():
                writer.write_table(table.cast(schema))
    except (pyarrow.ArrowException, OverflowError) as error:
        raise OutputError(f"[records] {path}: columns of mixed types ({error})") from error


def _slices(records: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(records)
    while rows := list(itertools.islice(iterator, size)):
        yield rows
