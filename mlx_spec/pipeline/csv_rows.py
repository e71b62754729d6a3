"""CSV as spreadsheets and pandas write it: the delimiter, the index column, any line end.

Rows come one at a time, a bad one with the reason, so that it does not end a run.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from mlx_spec.errors import InvalidRequest
from mlx_spec.text_files import split_returns, utf8_lines

# pandas writes its row numbers under no name.
INDEX = "index"
_DELIMITERS = ",;\t"
_LONE, _RETURN = re.compile(r"\r(?!\n|\Z)"), "\ud800"
# A field may be a whole document; the module's own limit is 128 KiB.
csv.field_size_limit(2**31 - 1)

Row: TypeAlias = tuple[dict[str, str], str | None]
"""Fields by name, and why they are not to be trusted, or None."""


def read_rows(blocks: Iterable[bytes], what: str) -> Iterator[Row]:
    """Yield the rows under the header; blank lines are none.

    Args:
        blocks: an open binary file.
        what: begins the errors of the whole file.

    Raises:
        InvalidRequest: a header whose names are no names, or an encoding that is none.
    """
    lines = _lines(utf8_lines(blocks, what))
    first = next(lines, "")
    skipped = 0
    if first.lower().startswith("sep=") and len(first.rstrip("\r\n")) == 5:  # for Excel's eyes
        delimiter, first, skipped = first[4], next(lines, ""), 1
    else:
        delimiter = _delimiter(first)
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header = _header(rows, what)
    number = 0
    while header:
        begin = rows.line_num + skipped + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield {}, _broken(str(error), begin, rows.line_num + skipped)
            continue
        if row:
            number += 1
            yield _make_row(header, _restored(row), what, number)


def _lines(lines: Iterable[bytes]) -> Iterator[str]:
    r"""Text as the ``csv`` module takes it.

    A file's first line end tells whether a lone ``\r`` is one, or stands in a cell: pandas does
    not quote it there, and the module takes it in quotes only, so it travels as ``_RETURN``. Bytes
    that are no UTF-8 travel as surrogates of their own, so that they spoil one row only.
    """
    lines = iter(lines)
    first = next(lines, b"")
    everything: Iterator[bytes] = itertools.chain([first], lines)
    begin = first.find(b"\r")
    if begin >= 0 and first[begin + 1 : begin + 2] not in (b"\n", b""):
        everything, lone = split_returns(everything), None
    else:
        lone = _LONE
    for line in everything:
        text = line.decode("utf-8", "surrogateescape")
        yield text if lone is None else lone.sub(_RETURN, text)


def _delimiter(header: str) -> str:
    """The one that cuts the header into most names; the comma where nothing does."""
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _header(rows: Iterator[list[str]], what: str) -> list[str]:
    try:
        header = _restored(next(rows, []))
    except csv.Error as error:
        raise InvalidRequest(f"{what}: the header is not CSV ({error})") from error
    if any(_damaged(name) for name in header):
        raise InvalidRequest(f"{what}: the header is not UTF-8")
    if len(header) > 1 and not header[0] and INDEX not in header:
        header = [INDEX, *header[1:]]
    named = [name for name in header if name]
    if len(set(named)) != len(named) or (header and not named):
        raise InvalidRequest(f"{what}: CSV header {header}: names must be unique and not empty")
    return header


def _make_row(header: list[str], row: list[str], what: str, number: int) -> Row:
    fields = {name: value for name, value in zip(header, row, strict=False) if name}
    # Spreadsheets write a delimiter for columns that once held something.
    unnamed = [value for name, value in zip(header, row, strict=False) if not name]
    if any(unnamed):
        raise InvalidRequest(
            f"{what}: CSV header {header}: names must be unique and not empty, and row {number} "
            f"has {next(filter(None, unnamed))[:40]!r} in a column without one"
        )
    if len(row) < len(header) or any(row[len(header) :]):
        return fields, f"{len(row)} fields, the header has {len(header)}"
    if any(map(_damaged, row)):
        return fields, "not UTF-8"
    return fields, None


def _broken(reason: str, begin: int, end: int) -> str:
    """What is wrong with a row that cannot be cut up, and where."""
    if "unexpected end of data" in reason:
        swallowed = f", with {end - begin} more lines in it" if end > begin else ""
        return f"not CSV (a quote is opened in line {begin} and never closed{swallowed})"
    lines = f"line {begin}" if end <= begin else f"lines {begin} to {end}"
    return f"not CSV ({reason}, {lines})"


def _restored(row: list[str]) -> list[str]:
    return [value.replace(_RETURN, "\r") for value in row]


def _damaged(value: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in value)
