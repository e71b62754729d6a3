"""Running failed records again: their lines are taken out, and the new ones put in their places.

Every change is one rename, so that a crash leaves the old file or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_spec.errors import OutputError
from mlx_spec.pipeline.failures import ERROR, FAILED, NUMBER
from mlx_spec.pipeline.records import read_records, to_line


def good_lines(work: Path) -> Iterator[bytes]:
    """The whole lines of a file of results whose records did not fail."""
    with work.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and not json.loads(line).get(FAILED):
                yield line


def table_results(out: Path, format: str) -> Iterator[dict[str, Any]]:
    """The results in a table, as they were before they became one.

    Raises:
        OutputError: a row has no number of ours.
    """
    for row in read_records(out, format):
        fields = dict(row.fields)
        try:
            fields[NUMBER] = int(fields[NUMBER])
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(
                f"[resume] {out} row {row.number} was not written by this command; "
                "--overwrite begins again"
            ) from error
        if not fields.get(FAILED):  # the column is in every row
            fields.pop(FAILED, None)
            if not fields.get(ERROR):
                fields.pop(ERROR, None)
        yield fields


def good_table_lines(out: Path, format: str) -> Iterator[bytes]:
    """The lines that a table came from, without those of records that failed."""
    for fields in table_results(out, format):
        if not fields.get(FAILED):
            yield to_line(fields)


def rewrite(path: Path, lines: Iterator[bytes]) -> None:
    """Put lines in the place of a file, or leave it."""
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("wb") as file:
        file.writelines(lines)
    os.replace(partial, path)


def sort_lines(work: Path) -> None:
    """Put the results into the order of their records; memory holds one and the places of all."""
    places = []
    with work.open("rb") as file:
        begin = 0
        for line in file:
            places.append((json.loads(line)[NUMBER], begin, len(line)))
            begin += len(line)
    if places == sorted(places):
        return

    def lines() -> Iterator[bytes]:
        with work.open("rb") as file:
            for _, begin, length in sorted(places):
                file.seek(begin)
                yield file.read(length)

    rewrite(work, lines())
