"""Records in and out: every format, and every way in which a line can be broken."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.records import (
    Record,
    count,
    fingerprint,
    format_of,
    read_records,
    to_line,
)
from tests.jsonl import strict


def read(path: Path, data: bytes, format: str = "jsonl") -> list[Record]:
    path.write_bytes(data)
    return list(read_records(path, format))


BROKEN = {
    "no JSON": (b"{", "not JSON"),
    "an array": (b"[1]", "a JSON list (jq -c '.[]' makes lines of one), expected an object"),
    "a number": (b"7", "a number, expected an object a line"),
    "no UTF-8": (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
    "cut in half": (b'{"a": 1', "not JSON"),
    "endless nesting": (b"[" * 100_000, "not JSON"),
    "two objects": (b'{"a": 1} {"b": 2}', "Extra data, column 10"),
    "an endless number": (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_reported_by_its_number_and_the_rest_goes_on(
    case: str, tmp_path: Path
) -> None:
    line, words = BROKEN[case]
    records = read(tmp_path / "a", b'{"a": 1}\n\n' + line + b'\n{"a": 2}')
    assert [record.number for record in records] == [1, 3, 4]
    assert records[0].fields == {"a": 1}
    assert records[2].fields == {"a": 2}
    assert records[1].error is not None
    assert records[1].error.startswith("[records] line 3: ")
    assert words in records[1].error
    assert len(to_line(records[1].fields)) < 2000


def test_byte_order_mark_windows_lines_and_half_surrogates(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": "\xc3\xa4"}\r\n   \r\n{"b": "\\ud800"}\r\n'
    first, second = read(tmp_path / "a", data)
    assert first.fields == {"a": "ä"}
    assert second.number == 3
    assert json.loads(to_line(second.fields)) == {"b": "\ud800"}
    assert to_line({"a": "ä"}) == '{"a": "ä"}\n'.encode()


def test_csv_with_quotes_newlines_and_broken_rows(tmp_path: Path) -> None:
    data = '\ufeffid,text\n1,"two\nlines, ""quoted"""\n\n2\n3,a,b\n4,ok\n'.encode()
    records = read(tmp_path / "a", data + b"5,\xff\n6,end\n", "csv")
    assert records[0] == Record(1, {"id": "1", "text": 'two\nlines, "quoted"'})
    assert records[1].error == "[records] row 2: 1 fields, the header has 2"
    assert records[2].error == "[records] row 3: 3 fields, the header has 2"
    assert records[3] == Record(4, {"id": "4", "text": "ok"})
    assert records[4].error == "[records] row 5: not UTF-8"
    assert records[5] == Record(6, {"id": "6", "text": "end"})
    assert read(tmp_path / "a", b"", "csv") == []


@pytest.mark.parametrize("header", ["a,a\n1,2\n", "a,\n1,2\n"])
def test_a_bad_csv_header_is_refused(header: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="must be unique"):
        read(tmp_path / "a", header.encode(), "csv")


# What programs write, and the rows that are in it.
SHEETS = {
    "semicolons": (b"id;text\n1;a, b\n2;c\n", ["a, b", "c"]),
    "tabs": (b"id\ttext\n1\ta, b; c\n", ["a, b; c"]),
    "a word for Excel": (b"sep=;\r\nid;text\r\n1;a\r\n", ["a"]),
    "one column": (b"text\na; b\n", ["a; b"]),
    "delimiters inside quotes": (b'"id;x;y",text\n1,a\n', ["a"]),
    "windows lines": (b'id,text\r\n1,"two\r\nlines"\r\n2,b\r\n', ["two\r\nlines", "b"]),
    "lone carriage returns": (b'id,text\r1,"two\rlines"\r2,b\r', ["two\rlines", "b"]),
    "a return in a cell, as pandas writes it": (b'id,text\n1,a\rb\n2,"c\rd"\r\n', ["a\rb", "c\rd"]),
    "both": (b"id,text\r1,a\n2,b\r\n3,c", ["a", "b", "c"]),
    "no line end": (b"id,text\n1,a", ["a"]),
    "a mark": (b"\xef\xbb\xbftext,id\na,1\n", ["a"]),
    "a mark and quotes": (b'\xef\xbb\xbf"text","id"\n"a","1"\n', ["a"]),
    "UTF-16": ("text;id\r\nä 日本;1\r\nb;2\r\n".encode("utf-16"), ["ä 日本", "b"]),
    "UTF-16, big endian": (b"\xfe\xff" + "text,id\nä,1\n".encode("utf-16-be"), ["ä"]),
    "empty columns at the end": (b"id,text,,\n1,a,,\n2,b\n3,c,\n", ["a", None, None]),
    "empty cells past the header": (b"id,text\n1,a,,\n", ["a"]),
    "other line ends of Unicode": ("id,text\n1,a\x0cb\u2028c\n".encode(), ["a\x0cb\u2028c"]),
}


@pytest.mark.parametrize("case", SHEETS)
def test_csv_as_programs_write_it(case: str, tmp_path: Path) -> None:
    data, texts = SHEETS[case]
    records = read(tmp_path / "a", data, "csv")
    found = [None if record.error else record.fields["text"] for record in records]
    assert found == texts
    assert count(tmp_path / "a", "csv") == len(texts)
    assert all("" not in record.fields for record in records)


def test_the_index_that_pandas_writes_has_a_name(tmp_path: Path) -> None:
    (record,) = read(tmp_path / "a", b",text\n7,a\n", "csv")
    assert record.fields == {"index": "7", "text": "a"}
    with pytest.raises(InvalidRequest, match="row 1 has '7' in a column without one"):
        read(tmp_path / "a", b",index\n7,a\n", "csv")


def test_a_quote_that_is_never_closed_says_where_it_was_opened(tmp_path: Path) -> None:
    """Stops a file's rest that is gone without a word."""
    data = b'text\n"a\nb"\n"open\nc\nd\n'
    first, second = read(tmp_path / "a", data, "csv")
    assert first.fields == {"text": "a\nb"}
    assert second.error == (
        "[records] row 2: not CSV (a quote is opened in line 4 and never closed, "
        "with 2 more lines in it)"
    )
    _, stray, last = read(tmp_path / "a", b'text\na\n"b"c\nd\n', "csv")
    assert stray.error is not None
    assert "line 3" in stray.error
    assert last.fields == {"text": "d"}


def test_json_lines_in_utf_16_and_with_any_line_end(tmp_path: Path) -> None:
    text = '{"a": "ä\u2028"}\n\n{"a": 2}\r\n{"a": 3}'
    for data in (
        text.encode(),
        text.replace("\r\n", "\n").replace("\n", "\r").encode(),
        text.encode("utf-16"),
        text.encode("utf-32"),
        b"\xfe\xff" + text.encode("utf-16-be"),
    ):
        records = read(tmp_path / "a", data)
        assert [record.number for record in records] == [1, 3, 4]
        assert [record.fields["a"] for record in records] == ["ä\u2028", 2, 3]
        assert count(tmp_path / "a", "jsonl") == 3


@pytest.mark.parametrize("format", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"a": 1}\n{"a": 2}\n'.encode("utf-16-le"), "UTF-16 or UTF-32 without"),
        ('{"a": 1}\n{"a": 2}\n'.encode("utf-16")[:-1], "not valid UTF-16"),
        (b'\xff\xfe{\x00"\x00\x00\xdc', "not valid UTF-16"),
    ],
)
def test_another_encoding_is_named_once(
    data: bytes, words: str, format: str, tmp_path: Path
) -> None:
    """Stops an error a line, none of which names the encoding."""
    with pytest.raises(InvalidRequest, match=words):
        read(tmp_path / "a", data, format)
    with pytest.raises(InvalidRequest, match=words):
        count(tmp_path / "a", format)


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    data = b'{"a": NaN, "b": [{"c": -Infinity}, 1e999, 1.5], "d": -1e999}\n'
    (record,) = read(tmp_path / "a", data)
    assert record.fields == {"a": None, "b": [{"c": None}, None, 1.5], "d": None}
    late = {"a": float("nan"), "b": (np.float32("inf"), np.float32(0.5), np.int64(3))}
    assert strict(to_line(late)) == {"a": None, "b": [None, 0.5, 3]}


class Color(str, Enum):
    RED = "red"


def test_what_python_knows_and_json_does_not() -> None:
    day = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
    record = {
        "time": day,
        "date": day.date(),
        "decimal": Decimal("1.50"),
        "text": "ä".encode(),
        "bytes": b"\xff\x00",
        "array": np.array([[1, 2], [3, 4]]),
        "pair": (1, {2}),
        "enum": Color.RED,
        "id": UUID(int=1),
        3: True,
        None: "null",
        (1, 2): "pair",
    }
    assert strict(to_line(record)) == {
        "time": "2026-01-02T03:04:05.000006+00:00",
        "date": "2026-01-02",
        "decimal": "1.50",
        "text": "ä",
        "bytes": "/wA=",
        "array": [[1, 2], [3, 4]],
        "pair": [1, [2]],
        "enum": "red",
        "id": "00000000-0000-0000-0000-000000000001",
        "3": True,
        "null": "null",
        "[1, 2]": "pair",
    }


def test_nesting_has_a_bound_that_everything_behind_can_walk(tmp_path: Path) -> None:
    def nested(depth: int) -> bytes:
        return b'{"a": ' + b"[" * depth + b"]" * depth + b"}\n"

    good, bad = read(tmp_path / "a", nested(99) + nested(100))
    assert strict(to_line(good.fields)) == good.fields
    assert bad.error == "[records] line 2: nested more than 100 deep"


def test_parquet_s_own_types_come_as_json_has_them(tmp_path: Path) -> None:
    """Stops NaN in an output line, Python's repr of bytes, and pandas' times that end the run."""
    table = pyarrow.table(
        {
            "score": [float("nan"), 1.0],
            "nested": [{"x": [float("inf")]}, None],
            "raw": [b"text", b"\xff"],
            "cost": [Decimal("1.50"), None],
            "time": pyarrow.array([1_500_000_001, 0], pyarrow.timestamp("ns")),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    first, second = (record.fields for record in read_records(tmp_path / "a.parquet", "parquet"))
    assert first == {
        "score": None,
        "nested": {"x": [None]},
        "raw": "text",
        "cost": "1.50",
        "time": "1970-01-01T00:00:01.500000",
    }
    assert second["nested"] is None
    assert second["raw"] == "/w=="
    assert count(tmp_path / "a.parquet", "parquet") == 2


@pytest.mark.parametrize("format", ["csv", "parquet", "jsonl"])
def test_odd_records_can_be_exported(format: str, tmp_path: Path) -> None:
    rows = [{"a\ud800": "x\udfff", "b": [{"c": "\ud800"}]}]
    export(rows, tmp_path / "out", format)
    (record,) = read_records(tmp_path / "out", format)
    assert next(iter(record.fields.values())) in ("x\\udfff", "x\udfff")
    export([], tmp_path / "none", format)
    assert list(read_records(tmp_path / "none", format)) == []


def test_csv_out_has_all_columns_and_json_for_nested_values(tmp_path: Path) -> None:
    two = "ends\r"  # python quotes this only where a row ends so
    rows = [{"a": 1, "b": {"c": ["ä"]}}, {"a": "2", "e": two}, {"e": "\ud800", "a": ""}]
    export(rows, tmp_path / "out.csv", "csv")
    back = list(read_records(tmp_path / "out.csv", "csv"))
    assert [record.fields["a"] for record in back] == ["1", "2", ""]
    assert back[1].fields["e"] == two
    assert b'"\n' in (tmp_path / "out.csv").read_bytes()
    assert b"\r\n" not in (tmp_path / "out.csv").read_bytes()
    assert json.loads(back[0].fields["b"]) == {"c": ["ä"]}
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_parquet_there_and_back(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "n": i} for i in range(2500)]
    rows[2400]["error"] = "only here"  # a column, and its type, that the first slice lacks
    export(rows, tmp_path / "a.parquet", "parquet")
    back = list(read_records(tmp_path / "a.parquet", "parquet"))
    assert [record.number for record in back] == list(range(1, 2501))
    assert back[2400].fields == rows[2400]
    assert back[0].fields == {**rows[0], "error": None}
    with pytest.raises(OutputError, match="mixed types"):
        export([{"a": 1}, {"a": "x"}], tmp_path / "b.parquet", "parquet")
    with pytest.raises(InvalidRequest, match="not Parquet"):
        read(tmp_path / "c", b"no parquet", "parquet")


def test_formats_by_suffix_or_option() -> None:
    assert format_of(Path("a.JSONL"), None) == "jsonl"
    assert format_of(Path("a.pq"), "csv") == "parquet"
    assert format_of(Path("-"), None) == "jsonl"
    assert format_of(Path("a.txt"), "csv") == "csv"
    with pytest.raises(InvalidRequest, match=r"'\.txt' tells no format"):
        format_of(Path("a.txt"), None)
    with pytest.raises(InvalidRequest, match="expected one of jsonl, csv, parquet"):
        format_of(Path("a.csv"), "xml")


def test_stdin_and_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n')))
    assert list(read_records(Path("-"), "jsonl")) == [Record(1, {"a": 1})]
    with pytest.raises(InvalidRequest, match="No such file"):
        list(read_records(tmp_path / "none", "jsonl"))
    with pytest.raises(InvalidRequest, match="No such file"):
        fingerprint(tmp_path / "none")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        fingerprint(tmp_path)
    with pytest.raises(InvalidRequest, match="cannot be read from stdin"):
        list(read_records(Path("-"), "parquet"))


def test_a_fingerprint_changes_with_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\nb")
    first = fingerprint(path)
    path.write_bytes(b"a\nc")
    assert fingerprint(path) != first
