"""Records in and out: every format, and every way in which a line can be broken."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.pipeline.records import (
    Record,
    export,
    fingerprint,
    format_of,
    read_records,
    to_line,
)


def read(path: Path, data: bytes, format: str = "jsonl") -> list[Record]:
    path.write_bytes(data)
    return list(read_records(path, format))


BROKEN = {
    "no JSON": (b"{", "not JSON"),
    "an array": (b"[1]", "a JSON list, expected an object"),
    "a number": (b"7", "a JSON int"),
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


def test_csv_out_has_all_columns_and_json_for_nested_values(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": {"c": ["ä"]}}, {"a": "two\nlines", "d": None}, {"e": "\ud800"}]
    export(rows, tmp_path / "out.csv", "csv")
    back = list(read_records(tmp_path / "out.csv", "csv"))
    assert [record.fields["a"] for record in back] == ["1", "two\nlines", ""]
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


def test_a_fingerprint_changes_with_any_byte_and_counts_lines(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\nb")
    first = fingerprint(path)
    assert first[1] == 2
    path.write_bytes(b"a\nc")
    assert fingerprint(path)[0] != first[0]
