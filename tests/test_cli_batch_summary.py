"""What a batch says at its end, running failed records again, and a record's own options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.export import export
from mlx_spec.pipeline.failures import Failures
from mlx_spec.pipeline.record_sampling import check_names, sampling_of
from mlx_spec.pipeline.records import read_records
from tests.jsonl import read_lines

TEMPLATE = "--prompt-template"


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(*arguments: Any) -> int:
    return main(["batch", *map(str, arguments)])


RECORDS = [{"text": f"def f{i}("} if i % 3 else {"prompt": "class A", "n": i} for i in range(8)]


# --- the summary ----------------------------------------------------------------------------


def test_the_summary_says_what_went_wrong_and_what_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    assert run(source, out, "-m", 3, TEMPLATE, "{{ text }}") == 1
    wrong = (
        "Error in 3 records, first in record 1: [prompt-template] 'text' is undefined; "
        "the record's fields are: prompt, n"
    )
    *_, records, length, error = capsys.readouterr().err.splitlines()
    assert records.startswith("Records: 8 written, 3 with an error (")
    assert records.endswith("; by the clock)")
    assert length == "Length: 5 of 8 cut at --max-tokens"
    assert error == wrong
    # An exit code without a word would send its reader into the file; also after a resume.
    assert run(source, out, "-m", 3, TEMPLATE, "{{ text }}", "--resume", "-q") == 1
    assert capsys.readouterr().err == f"mlx-spec: {wrong}\n"


def test_errors_are_one_kind_where_only_names_and_numbers_differ() -> None:
    failures = Failures()
    for number in range(1, 6):
        text = f"line {number}: no 'x{number}'; there is {'ab'[number % 2]}"
        failures.add({"_record": number, "_failed": True, "error": text})
    for number, text in enumerate(["a", "b", "b", "c", "d"], start=6):
        failures.add({"_record": number, "_failed": True, "error": text})
    failures.add({"_record": 11, "error": "a field of the user's"})
    assert failures.count == 10
    assert failures.lines() == [
        "Error in 5 records, first in record 1: line 1: no 'x1'; there is b",
        "Error in 2 records, first in record 7: b",
        "Error in 1 record, first in record 6: a",
        "Other errors in 2 records",
    ]


# --- running failed records again -----------------------------------------------------------


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_failed_records_run_again_and_the_output_is_the_one_without_the_mistake(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.jsonl", RECORDS), tmp_path / f"out.{format}"
    good = [TEMPLATE, "{{ text or prompt }}".replace("text or", "record.text | default(prompt) or")]
    sampled = ["-q", "-m", 4, "--temp", 0.8, "--seed", 3]
    assert run(source, out, *sampled, TEMPLATE, "{{ text }}") == 1
    assert run(source, out, *sampled, *good, "--resume") == 2  # without a word, only as it was
    capsys.readouterr()
    assert run(source, out, *sampled, *good, "--retry-failed") == 0
    assert capsys.readouterr().err == ""
    undisturbed = tmp_path / f"undisturbed.{format}"
    assert run(source, undisturbed, *sampled, *good) == 0
    if format == "parquet":
        assert parquet.read_table(out).to_pylist() == parquet.read_table(undisturbed).to_pylist()
    else:
        assert out.read_bytes() == undisturbed.read_bytes()
    # Nothing is left to run again, and the options are the new ones.
    before = out.read_bytes()
    assert run(source, out, *sampled, *good, "--retry-failed") == 0
    assert run(source, out, *sampled, *good, "--resume") == 0
    assert out.read_bytes() == before
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if name.endswith((".tmp", ".part.jsonl"))]


def test_a_retry_that_fails_again_or_stops_half_way_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    wrong = ["-q", "-m", 2, TEMPLATE, "{{ text }}"]
    assert run(source, out, *wrong) == 1
    first = out.read_bytes()
    assert run(source, out, *wrong, "--retry-failed") == 1
    assert out.read_bytes() == first
    # As a kill leaves it: failed lines gone, one of the new ones there, at the end.
    right = ["-q", "-m", 2, TEMPLATE, "{{ record.text | default('x') }}"]
    assert run(source, out, *right, "--retry-failed", "--limit", 4) == 0
    assert len(read_lines(out)) == 7
    assert run(source, out, *right, "--resume") == 0
    assert [record["_record"] for record in read_lines(out)] == list(range(1, 9))
    write(source, RECORDS[:-1])
    assert run(source, out, *right, "--retry-failed") == 2
    assert "the input, or a stage before this one, was another" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_stage_that_drops_takes_its_failed_records_again(format: str, tmp_path: Path) -> None:
    records = [{"text": "long enough"}, {"body": "so is this"}, {"text": "no"}, {"body": "no"}]
    source, out = write(tmp_path / "in.jsonl", records), tmp_path / f"out.{format}"
    rules = [str(source), str(out), "-q", "--question", "", "--min-chars", "5"]
    assert main(["filter", *rules]) == 1
    assert main(["filter", *rules, "--field", "body", "--retry-failed"]) == 0
    assert main(["filter", *rules, "--field", "body", "--retry-failed"]) == 0
    everything = read_lines(tmp_path / f"out.{format}.all.jsonl")
    assert [(one["_record"], one["keep"]) for one in everything] == [
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]
    kept = list(read_records(out, format))
    assert [int(record.fields["_record"]) for record in kept] == [1, 2]
    assert not any("error" in record.fields for record in kept)


# --- a record's own options -----------------------------------------------------------------


def test_a_record_s_own_options_count_where_they_are_asked_for(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"prompt": "def f("},
        {"prompt": "def f(", "max_tokens": 2},
        {"prompt": "def f(", "max_tokens": None, "temperature": 5.0, "seed": 4},
        {"prompt": "def f(", "max_tokens": "many"},
        {"prompt": "def f(", "temperature": -1},
        {"prompt": "def f(", "temperature": 5.0, "seed": 4},
    ]
    source, out = write(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    names = ["--sampling-fields", "max_tokens, temperature,seed"]
    assert run(source, out, "-q", "-m", 6, *names) == 1
    first, short, hot, many, cold, again = read_lines(out)
    assert [r.get("_generation_tokens") for r in (first, short, hot)] == [6, 2, 6]
    assert hot["output"] == again["output"] != first["output"]
    assert many["error"] == "field 'max_tokens' holds 'many', expected an integer"
    assert "temperature=-1" in cold["error"]
    # Unasked, a column of that name is data.
    plain = tmp_path / "plain.jsonl"
    assert run(source, plain, "-q", "-m", 6) == 0
    assert {r["output"] for r in read_lines(plain)} == {first["output"]}


def test_options_come_in_the_types_of_every_format(tmp_path: Path) -> None:
    fields = {"max_tokens": "24", "temperature": "0.5", "top_k": 3.0, "stop": "x", "top_p": ""}
    names = tuple(fields)
    found = sampling_of(fields, names)
    assert found == {"max_tokens": 24, "temperature": 0.5, "top_k": 3, "stop": ("x",)}
    assert type(found["top_k"]) is int
    assert sampling_of({"stop": ["a", "b"], "n": 1}, names) == {"stop": ("a", "b")}
    shaped = {"logit_bias": '{"5": -1}', "repetition_penalty": "1.1", "min_tokens": "3"}
    expected = {"logit_bias": {"5": -1}, "repetition_penalty": 1.1, "min_tokens": 3}
    assert sampling_of(shaped, tuple(shaped)) == expected
    for value in (True, 2.5, "2.5", [1], float("inf"), "nan"):
        with pytest.raises(InvalidRequest, match="expected an integer"):
            sampling_of({"max_tokens": value}, names)
    with pytest.raises(InvalidRequest, match="expected a text or texts"):
        sampling_of({"stop": [1]}, names)
    rows = [{"prompt": "def f(", "max_tokens": 2}, {"prompt": "def f("}]
    export(rows, tmp_path / "in.csv", "csv")
    out = tmp_path / "out.jsonl"
    assert run(tmp_path / "in.csv", out, "-q", "-m", 3, "--sampling-fields", "max_tokens") == 0
    assert [record["_generation_tokens"] for record in read_lines(out)] == [2, 3]


def test_a_name_that_is_no_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("in.jsonl", "out.jsonl", "--sampling-fields", "max_token") == 2
    assert "did you mean 'max_tokens'?" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match="known: max_tokens, temperature"):
        check_names(["colour"])
