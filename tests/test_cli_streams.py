"""``mlx-spec batch``, and others, where streams misbehave: full disks, closed pipes, odd bytes.

Real processes: what happens to a stream at exit cannot be seen from inside.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from tests.jsonl import read_lines
from tests.waiting import PATIENCE

FULL = Path("/dev/full")
# As users have it: streams without buffers would hide what a buffer does at exit.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
needs_full = pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")


def write_input(path: Path, count: int = 6) -> Path:
    lines = (json.dumps({"prompt": f"def f{i}(", "more": "x" * 300}) + "\n" for i in range(count))
    path.write_text("".join(lines))
    return path


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "mlx_spec", "batch", *map(str, arguments)]


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT, **options}
    return subprocess.run(command(*arguments), text=True, timeout=120, check=False, **given)


# --- pipes ----------------------------------------------------------------------------------


def test_stdout_carries_records_only_and_progress_goes_to_stderr(tmp_path: Path) -> None:
    with write_input(tmp_path / "in.jsonl").open() as source:
        done = run("-", "-", "-m", 3, stdin=source)
    assert done.returncode == 0
    assert [json.loads(line)["_record"] for line in done.stdout.splitlines()] == list(range(1, 7))
    assert "Records: 6 written" in done.stderr


def test_every_format_that_stdin_and_stdout_can_carry(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {
        "jsonl": (b'{"text": "import "}\n{"text": 5}\n', b'{"text": "import ", "output": '),
        "csv": (b"text\nimport \n5,6\n", b"text,output,"),
    }
    for format, (given, start) in data.items():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert main(["batch", "-", "-", "-q", "-m", "3", "--format", format]) == 1
        shown = capsysbinary.readouterr().out
        assert shown.startswith(start)
        assert b"import " in shown


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path: Path) -> None:
    """As ``| head -1`` does."""
    source = write_input(tmp_path / "in.jsonl", 400)
    with subprocess.Popen(
        command(source, "-", "-q", "-m", 10),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["_record"] == 1
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 1
    assert errors == ""


def closing(descriptor: int) -> Callable[[], None]:
    return lambda: os.close(descriptor)


@pytest.mark.parametrize(
    ("descriptor", "source", "out", "words"),
    [(0, "-", "out.jsonl", "stdin is closed"), (1, "in.jsonl", "-", "stdout is closed")],
)
def test_a_stream_that_is_closed_is_named(
    descriptor: int, source: str, out: str, words: str, tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl")
    places = [one if one == "-" else tmp_path / one for one in (source, out)]
    done = run(*places, preexec_fn=closing(descriptor))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_stderr_no_word_of_ours_gets_among_the_records(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl")
    done = run(source, "-", "-m", 3, preexec_fn=closing(2))
    assert done.returncode == 0
    assert [json.loads(line)["_record"] for line in done.stdout.splitlines()] == list(range(1, 7))


# --- full disks -----------------------------------------------------------------------------


@needs_full
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_full_disk_under_stdout_is_one_line(format: str, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl")
    with FULL.open("w") as full:
        done = run(source, "-", "-q", "-m", 3, "--format", format, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "mlx-spec: error: [batch] stdout: No space left on device\n"


@needs_full
def test_a_full_disk_under_the_log_ends_no_run(tmp_path: Path) -> None:
    source, out = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    with FULL.open("w") as full:
        assert run(source, out, "-m", 3, stderr=full).returncode == 0
        assert len(read_lines(out)) == 6
        assert run(source, out, "-m", 3, stderr=full).returncode == 2


@needs_full
@pytest.mark.parametrize(
    "arguments", [["--version"], ["generate", "-p", "d", "-m", "2"], ["doctor", "--json"]]
)
def test_no_command_takes_a_full_disk_under_stdout_for_a_fault_of_ours(
    arguments: list[str],
) -> None:
    command = [sys.executable, "-m", "mlx_spec", *arguments]
    with FULL.open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "mlx-spec: error: stdout: No space left on device"
    assert "Traceback" not in done.stderr


def small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_after_a_full_disk_resume_loses_nothing(suffix: str, tmp_path: Path) -> None:
    """The disk is full in the middle of a record; it is made room, and the run goes on."""
    source, out = write_input(tmp_path / "in.jsonl", 9), tmp_path / f"out.{suffix}"
    undisturbed = tmp_path / f"undisturbed.{suffix}"
    done = run(source, out, "-q", "-m", 4, preexec_fn=small_files)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "what is done stays, --resume goes on" in done.stderr
    assert main(["batch", str(source), str(out), "-q", "-m", "4", "--resume"]) == 0
    assert main(["batch", str(source), str(undisturbed), "-q", "-m", "4"]) == 0
    assert out.read_bytes() == undisturbed.read_bytes()


# --- stdin cannot be read again -------------------------------------------------------------


def test_ctrl_c_of_a_run_from_stdin_promises_no_resume(tmp_path: Path) -> None:
    source, out = write_input(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"
    with source.open() as given:
        process = subprocess.Popen(
            command("-", out, "-m", 5), stdin=given, stderr=subprocess.PIPE, text=True
        )
    while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted after" in errors
    assert "--resume" not in errors
    assert len(read_lines(out)) > 3


def test_resume_from_stdin_says_what_to_do_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", "-", str(tmp_path / "out.jsonl"), "-q", "--resume"]) == 2
    shown = capsys.readouterr().err
    assert "save the input to a file and begin with that" in shown
    assert shown.count("\n") == 1


# --- odd bytes ------------------------------------------------------------------------------

ODD = {
    "a byte order mark": (b'\xef\xbb\xbf{"prompt": "def g("}\r\n', [None]),
    "another encoding": (b'{"prompt": "caf\xe9"}\n{"prompt": "x"}', ["line 1: not UTF-8", None]),
    "UTF-16": ('{"prompt": "x"}\n'.encode("utf-16"), [None]),
    "a zero character": (b'{"prompt": "a\\u0000b"}\n', [None]),
    "blank lines": (b'\n\n{"prompt": "x"}\n  \n', [None]),
    "no text": (b'{"prompt": ""}\n{"prompt": null}\n{"prompt": 5}\n', ["expected text"] * 3),
    "nothing": (b"", []),
    "a huge line": (
        b'{"prompt": "' + b"x = 1; " * 100_000 + b'"}\n{"prompt": "x"}\n',
        ["the model's context is", None],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_bytes_cost_their_own_record_only(case: str, tmp_path: Path) -> None:
    data, errors = ODD[case]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(data)
    assert main(["batch", str(source), str(out), "-q", "-m", "2"]) == int(any(errors))
    records = read_lines(out)
    assert len(records) == len(errors)
    for record, words in zip(records, errors, strict=True):
        if words is None:
            assert record["_generation_tokens"] == 2
        else:
            assert words in record["error"]


def test_csv_quotes_and_line_breaks_come_out_as_they_went_in(tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text('prompt,note\n"def f(","a ""quoted"", one"\n"two\nlines",ä\n')
    assert main(["batch", str(source), str(out), "-q", "-m", "2"]) == 0
    first, second = read_lines(out)
    assert (first["prompt"], first["note"]) == ("def f(", 'a "quoted", one')
    assert (second["prompt"], second["note"]) == ("two\nlines", "ä")
