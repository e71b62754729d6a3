"""An output cut anywhere goes on to the same bytes; one that is not ours is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.errors import OutputError
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.records import read_records

IDENTITY = {"input": "abc", "stop": ("x",), "temp": 0.5}
RECORDS = [
    {"text": f"räcord {i}\nof two lines", "output": "o" * i, "_record": i} for i in (1, 2, 4, 7)
]


def write(out: Path, format: str = "jsonl", **options: Any) -> Checkpoint:
    """What a run does: skip what is there, write the rest, finish."""
    checkpoint = Checkpoint(out, format, IDENTITY, **options)
    checkpoint.begin()
    for record in RECORDS:
        if record["_record"] not in checkpoint:
            checkpoint.write(record)
    checkpoint.finish(complete=True)
    checkpoint.close()
    return checkpoint


def test_cut_at_every_byte_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out)
    whole = out.read_bytes()
    for cut in range(len(whole) + 1):
        out.write_bytes(whole[:cut])
        write(out, resume=True)
        assert out.read_bytes() == whole, f"cut after {cut} bytes"


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_table_cut_at_every_line_goes_on_to_the_same_table(tmp_path: Path, format: str) -> None:
    out = tmp_path / f"out.{format}"
    checkpoint = write(out, format)
    whole = out.read_bytes()
    assert not checkpoint.work.exists()
    assert [record.fields["_record"] for record in read_records(out, format)] in (
        ["1", "2", "4", "7"],
        [1, 2, 4, 7],
    )
    lines = [json.dumps(record) + "\n" for record in RECORDS]
    for count in range(len(lines) + 1):
        out.unlink()
        checkpoint._note(complete=False)
        checkpoint.work.write_text("".join(lines[:count]) + '{"text": "half')
        write(out, format, resume=True)
        assert out.read_bytes() == whole
    # Killed after the rename: the table is whole, and nothing is done again.
    assert write(out, format, resume=True).complete
    assert out.read_bytes() == whole


def test_a_new_run_begins_over_an_empty_file_and_refuses_one_with_content(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    write(out, resume=True)  # nothing there: it begins
    with pytest.raises(OutputError, match="--resume goes on with it, --overwrite begins again"):
        write(out)
    whole = out.read_bytes()
    out.write_text("")
    write(out)
    out.write_text("garbage\n")
    write(out, overwrite=True)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temp": 0.6}, "temp was 0.5, now 0.6"),
        ({"input": "xyz"}, "the input, or a stage before this one, was another"),
        ({"new": 1}, "new was None, now 1"),
    ],
)
def test_other_input_or_options_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    out = tmp_path / "out.jsonl"
    write(out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match=words):
        Checkpoint(out, "jsonl", {**IDENTITY, **change}, resume=True)
    assert out.read_bytes() == before


def test_the_seed_is_the_first_run_s(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    drawn = write(out).seed
    assert write(out, resume=True).seed == drawn
    assert write(out, resume=True, seed=drawn).seed == drawn
    with pytest.raises(OutputError, match=f"seed was {drawn}, now {drawn + 1}"):
        write(out, resume=True, seed=drawn + 1)
    assert write(out, overwrite=True, seed=5).seed == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hello\n", "line 1 was not written by this command"),
        ('{"a": 1}\n', "line 1 was not written by this command"),
        ('{"_record": 2}\n{"_record": 2}\n', "line 2: record 2 twice"),
    ],
)
def test_lines_that_are_not_ours_are_refused(tmp_path: Path, content: str, words: str) -> None:
    out = tmp_path / "out.jsonl"
    write(out)
    out.write_text(content)
    with pytest.raises(OutputError, match=words):
        write(out, resume=True)
    assert out.read_text() == content
    (tmp_path / "out.jsonl.run.json").write_text("{")
    with pytest.raises(OutputError, match="missing or damaged"):
        write(out, resume=True)


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = Checkpoint(out, "jsonl", IDENTITY)
    first.begin()
    first.write(RECORDS[0])
    second = Checkpoint(out, "jsonl", IDENTITY, overwrite=True)
    with pytest.raises(OutputError, match="another process is writing"):
        second.begin()
    second.close()
    assert len(out.read_text().splitlines()) == 1
    first.close()
    with pytest.raises(OutputError, match="not a regular file"):
        Checkpoint(tmp_path, "jsonl", IDENTITY)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "out.jsonl", "jsonl", IDENTITY)
    checkpoint.begin()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OutputError, match="No space left on device; what is done stays"):
        checkpoint.write(RECORDS[0])
    checkpoint.close()
