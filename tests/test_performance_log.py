"""The performance log: what it writes, and what it survives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.api import batch_generate
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.events import EngineStarted, ErrorHappened, StageDone
from mlx_spec.metrics import PerformanceLog
from mlx_spec.metrics.distribution import bucket_value
from mlx_spec.metrics.log_file import LogFile
from mlx_spec.metrics.log_reader import read_logs
from tests.scenario import noisy_draft, target
from tests.test_metrics import finished, step
from tests.waiting import eventually

Record = dict[str, Any]


def lines(folder: Path) -> list[Record]:
    """Every line of every file, in order; each must be whole."""
    texts = [path.read_text() for path in sorted(folder.iterdir())]
    assert all(text.endswith("\n") for text in texts)
    return [json.loads(line) for text in texts for line in text.splitlines()]


def log_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mlx-spec-log"]


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_run_is_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "logs"
    with PerformanceLog(folder, {"purpose": "test"}, interval=0.01) as log:
        batch = batch_generate(
            target("llama"),
            None,
            [[1, 2, 3], [4, 5], [6]],
            draft_model=noisy_draft("llama"),
            sampling=SamplingParams(max_tokens=20),
            batching=BatchingConfig(batch_size=2),
            listeners=[log],
        )
    written = lines(folder)
    header, end = written[0], written[-1]
    assert (header["kind"], header["format"], header["part"]) == ("header", 1, 0)
    assert header["versions"].keys() >= {"mlx", "mlx-lm", "mlx-spec", "python"}
    assert header["machine"]["backend"]
    assert header["notes"] == {"purpose": "test"}
    assert header["models"]["target"]["type"] == "llama"
    assert header["models"]["draft"]["bytes"] > 0
    assert header["config"]["batching"]["batch_size"] == 2
    steps = [line for line in written if line["kind"] == "inference"]
    stats = batch.stats
    assert len(steps) > 1
    assert sum(line["steps"] for line in steps) >= stats.steps
    assert sum(line["tokens"] for line in steps) == stats.generation_tokens == end["tokens"]
    assert sum(line["drafted"] for line in steps) == stats.drafted == end["drafted"]
    assert sum(line["accepted"] for line in steps) == stats.accepted == end["accepted"]
    assert all(line["peak_memory"] >= line["memory"] > 0 for line in steps)
    gaps = sum(sum(line["itl"].values()) for line in steps)
    assert gaps == sum(result.verify_steps - 1 for result in batch.results)
    requests = [line for line in written if line["kind"] == "request"]
    assert len(requests) == end["requests"] == 3
    assert Counter(line["generation_tokens"] for line in requests) == Counter(
        result.generation_tokens for result in batch.results
    )
    assert end["lost"] == 0
    assert not log_threads()


def test_a_window_sums_its_steps_up(tmp_path: Path) -> None:
    with PerformanceLog(tmp_path, interval=100.0) as log:
        log(step(10.0, ("a", "b"), tokens=5, drafted=8, accepted=3, draft_length=4, memory=900))
        log(step(10.5, ("a", "b"), tokens=2, draft_length=0, prefill_seconds=0.25))
        log(step(11.0, ("b",), tokens=1, waiting=7))
    (line,) = [line for line in lines(tmp_path) if line["kind"] == "inference"]
    assert (line["seconds"], line["decode_seconds"], line["prefill_seconds"]) == (1.5, 1.5, 0.25)
    assert (line["steps"], line["tokens"], line["tok_s"]) == (3, 8, 5.33)
    assert (line["acceptance"], line["draft_length"]) == (0.375, 1.333)
    assert (line["rows"], line["row_steps"], line["waiting"]) == (1.667, 5, 7)
    assert (line["memory"], line["peak_memory"]) == (100, 900)
    ((number, count),) = line["itl"].items()
    assert bucket_value(int(number)) == pytest.approx(0.5, rel=0.0101)
    assert count == 3


def test_stages_and_errors_are_written_down(tmp_path: Path) -> None:
    log = PerformanceLog(tmp_path)
    log(StageDone(time.perf_counter(), "filter", 10, 0.5, errors=1))
    log(StageDone(time.perf_counter(), "align", 6, 2.0, details={"kept": 4}))
    log(ErrorHappened(time.perf_counter(), "submit", "too long", "r7"))
    log.close()
    log.close()
    log(StageDone(time.perf_counter(), "too late", 6, 2.0))
    written = lines(tmp_path)
    stages = {line["stage"]: line for line in written if line["kind"] == "stage"}
    assert set(stages) == {"filter", "align"}
    assert (stages["filter"]["items"], stages["filter"]["errors"]) == (10, 1)
    assert (stages["align"]["items_s"], stages["align"]["details"]) == (3.0, {"kept": 4})
    errors = [line["where"] for line in written if line["kind"] == "error"]
    assert errors == ["submit"]


def test_a_second_engine_under_one_log_is_named(tmp_path: Path) -> None:
    with PerformanceLog(tmp_path) as log:
        for rows in (2, 3):
            log(EngineStarted(0.0, {"target": {"type": "llama"}}, {"rows": rows}))
            log(finished(1.0, "a"))
    written = lines(tmp_path)
    assert written[0]["config"] == {"rows": 2}
    assert [line["config"] for line in written if line["kind"] == "engine"] == [{"rows": 3}]


def test_a_log_that_heard_nothing_writes_nothing(tmp_path: Path) -> None:
    PerformanceLog(tmp_path / "logs").close()
    assert not (tmp_path / "logs").exists()
    assert not log_threads()


def test_files_rotate_by_size_and_the_oldest_go(tmp_path: Path) -> None:
    with PerformanceLog(tmp_path, max_bytes=4000, keep=3) as log:
        for number in range(100):
            log(finished(float(number), f"r{number}"))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    assert all(path.stat().st_size <= 4000 for path in files)
    heads = [json.loads(path.read_text().splitlines()[0]) for path in files]
    assert {head["kind"] for head in heads} == {"header"}
    parts = [head["part"] for head in heads]
    assert parts == list(range(parts[0], parts[0] + 3))
    assert parts[0] > 0
    kept = [line["id"] for line in lines(tmp_path) if line["kind"] == "request"]
    # Nothing is lost between two files.
    assert kept == [f"r{number}" for number in range(100 - len(kept), 100)]
    runs, problems = read_logs(tmp_path)
    assert (len(runs), problems) == (1, [])


def test_what_was_counted_is_written_though_nothing_more_comes(tmp_path: Path) -> None:
    """A server that falls idle, or a run that nobody closes, leaves no figures in memory."""
    log = PerformanceLog(tmp_path, interval=0.01)
    log(step(time.perf_counter(), ("a",)))
    eventually(
        lambda: any("inference" in path.read_text() for path in tmp_path.iterdir()),
    )
    log.close()


KILLED = """
import os, signal, sys, time
from pathlib import Path
from mlx_spec.metrics import PerformanceLog
from tests.test_metrics import finished
log = PerformanceLog(sys.argv[1] if len(sys.argv) > 1 else {folder!r})
folder = Path({folder!r})
number = 0
while not folder.exists() or sum(p.stat().st_size for p in folder.iterdir()) < 30_000:
    log(finished(float(number), f"r{{number}}"))
    number += 1
    time.sleep(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_leaves_readable_lines(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    assert run_code(KILLED.format(folder=str(folder))).returncode == -9
    (run,), problems = read_logs(folder)
    assert run.end is None
    assert len(run.requests) > 50
    assert [line["id"] for line in run.requests] == [f"r{i}" for i in range(len(run.requests))]
    assert all("cut off" in str(problem) for problem in problems)


UNCLOSED = """
from mlx_spec.metrics import PerformanceLog
from tests.test_metrics import finished, step
log = PerformanceLog({folder!r})
log(step(1.0, ("a",), seconds=0.1))
log(finished(1.0, "a"))
"""


def test_a_log_that_nobody_closes_is_closed_at_exit(tmp_path: Path) -> None:
    done = run_code(UNCLOSED.format(folder=str(tmp_path / "logs")))
    assert done.returncode == 0, done.stderr
    kinds = [line["kind"] for line in lines(tmp_path / "logs")]
    assert kinds == ["header", "request", "inference", "end"]


def test_a_folder_that_cannot_be_written_costs_lines_and_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.warns(RuntimeWarning, match="cannot write to .*; the run goes on") as warned,
        PerformanceLog(tmp_path / "file" / "logs", interval=0.01) as log,
    ):
        result = batch_generate(
            target("llama"),
            None,
            [[1, 2], [3]],
            sampling=SamplingParams(max_tokens=10),
            listeners=[log],
        )
    assert log.lost > 2
    assert len(warned) == 1
    assert [len(r.token_ids) for r in result.results] == [10, 10]
    assert not log_threads()


FULL = """
import resource, signal, sys
from pathlib import Path
from mlx_spec.metrics.log_file import LogFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
head = dict(kind="header", format=1, run="x")
writer = LogFile(Path({folder!r}), "run", retry=0)
for number in range(100):
    record = {{"kind": "request", "t": number, "generation_tokens": 1, "id": f"r{{number}}"}}
    writer.write(head, record)
writer.close()
print(writer.lost)
"""


def test_a_disk_that_takes_no_more_cuts_one_line_and_a_new_file_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: a write that is only done in part."""
    done = run_code(FULL.format(folder=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    lost = int(done.stdout)
    assert lost > 1
    assert done.stderr.count("cannot write to") == 1
    (run,), problems = read_logs(tmp_path)
    assert len(run.requests) == 100 - lost
    # Every line that was lost is missing from the files, counted, and spoken of.
    assert sum(error["count"] for error in run.errors) <= lost
    assert run.errors[0]["where"] == "PerformanceLog"
    assert {problem.reason for problem in problems} == {
        "its last line is cut off (killed, or still written)"
    }


def test_it_is_tried_again_after_a_while_and_says_what_was_lost(tmp_path: Path) -> None:
    blocked = tmp_path / "logs"
    blocked.write_text("in the way")
    head = {"kind": "header", "format": 1, "run": "x"}
    writer = LogFile(blocked, "run", retry=0.0)
    with pytest.warns(RuntimeWarning, match="Not a directory|File exists"):
        writer.write(head, {"kind": "request", "n": 1})
    assert writer.lost == 1
    blocked.unlink()
    writer.write(head, {"kind": "request", "n": 2})
    writer.close()
    written = lines(blocked)
    assert [line["kind"] for line in written] == ["header", "error", "request"]
    assert (written[1]["count"], written[2]["n"]) == (1, 2)


def test_values_that_json_does_not_know_are_written_as_text(tmp_path: Path) -> None:
    with PerformanceLog(tmp_path, {"path": Path("/models")}) as log:
        log(StageDone(0.0, "s\n", 1, 1.0, details={"set": {1}}))
        log(StageDone(0.0, "s", 1, 1.0, details={"a": {(1, 2): "no JSON key"}}))
    header, stage, broken, _ = lines(tmp_path)
    assert header["notes"] == {"path": "/models"}
    assert (stage["stage"], stage["details"]) == ("s\n", {"set": "{1}"})
    assert broken["kind"] == "error"
    assert broken["error"].startswith("stage: TypeError")
