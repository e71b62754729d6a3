"""``mlx-spec report``: from logs as they are found to a table, charts and a page."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.events import ErrorHappened, StageDone
from mlx_spec.metrics import PerformanceLog
from mlx_spec.metrics.distribution import bucket
from mlx_spec.metrics.goodput import Limits
from mlx_spec.metrics.log_reader import Problem, RunLog, read_logs
from mlx_spec.metrics.report import print_report
from mlx_spec.metrics.summary import summarise
from mlx_spec.metrics.terms import GROUPS, TERMS
from tests.test_metrics import finished, step

HEADER = {"kind": "header", "format": 1, "run": "x-1-ab", "part": 0, "started": "2026-01-02T03:04"}


def write(path: Path, *records: Any, end: str = "\n") -> None:
    texts = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(texts) + end)


def inference(t: float, **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "seconds": 0.5,
        "tokens": 50,
        "tok_s": 100.0,
        "drafted": 40,
        "accepted": 30,
        "draft_length": 4.0,
        "rows": 2.0,
        "row_steps": 20,
        "batch_size": 4,
        "peak_memory": 10**9,
        "itl": {str(bucket(0.05)): 10},
    }
    return {"kind": "inference", "t": t, **values, **fields}


def request(t: float, **fields: Any) -> dict[str, Any]:
    values = {"reason": "stop", "generation_tokens": 50, "ttft": 0.1, "tpot": 0.01}
    return {"kind": "request", "t": t, "queue_time": 0.0, "acceptance": 0.75, **values, **fields}


def make_logs(folder: Path) -> None:
    """A run as the log itself writes it."""
    with PerformanceLog(folder, {"target": "big<b>", "draft": "small"}) as log:
        log(step(10.0, ("a", "b"), tokens=6, drafted=8, accepted=4, draft_length=4))
        log(step(10.5, ("a", "b"), tokens=2))
        log(finished(10.5, "a", drafted=8, accepted=4))
        log(finished(10.5, "b", reason="length"))
        log(StageDone(11.0, "filter", 20, 2.0, errors=1))
        log(StageDone(12.0, "filter", 20, 2.0))
        log(ErrorHappened(12.0, "submit", "<script>alert(1)</script>"))


def terminal(logs: list[RunLog], problems: list[Problem], width: int = 160) -> str:
    console = Console(file=StringIO(), width=width)
    print_report(console, [summarise(log, number=n) for n, log in enumerate(logs, 1)], problems)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


# --- reading ---


def test_what_the_log_writes_is_read_back(tmp_path: Path) -> None:
    make_logs(tmp_path)
    (run,), problems = read_logs(tmp_path)
    assert problems == []
    assert len(run.requests) == 2
    assert sum(line["tokens"] for line in run.inference) == 8
    assert [line["items"] for line in run.stages] == [20, 20]
    assert len(run.errors) == 1
    assert run.end is not None


def test_files_of_a_run_belong_together_and_runs_are_in_order(tmp_path: Path) -> None:
    late = {**HEADER, "run": "y", "started": "2026-05-05T00:00"}
    write(tmp_path / "a-late.jsonl", late, request(1.0))
    write(tmp_path / "b.jsonl", {**HEADER, "part": 10}, request(3.0))
    write(tmp_path / "c.jsonl", {**HEADER, "part": 2}, request(2.0))
    runs, problems = read_logs(tmp_path)
    assert [run.run for run in runs] == ["x-1-ab", "y"]
    assert [line["t"] for line in runs[0].requests] == [2.0, 3.0]
    assert problems == []


def test_one_file_may_be_given(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", HEADER, request(1.0))
    runs, _ = read_logs(tmp_path / "a.jsonl")
    assert len(runs) == 1


def test_a_last_line_that_is_cut_off_is_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", HEADER, request(1.0), '{"kind": "request", "t": 2', end="")
    (run,), (problem,) = read_logs(tmp_path)
    assert len(run.requests) == 1
    assert str(problem) == f"{tmp_path / 'a.jsonl'}: {problem.reason}"
    assert "cut off" in problem.reason


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        "",
        '{"t": 1}',
        '{"kind": 7}',
        '{"kind": "request", "t": "soon", "generation_tokens": 1}',
        '{"kind": "request", "t": NaN, "generation_tokens": 1}',
        '{"kind": "request", "t": 1e999, "generation_tokens": 1}',
        '{"kind": "request", "t": true, "generation_tokens": 1}',
        '{"kind": "request", "t": 1, "generation_tokens": 1, "ttft": "x"}',
        '{"kind": "inference", "t": 1}',
        json.dumps(inference(1.0, itl={"999999": 1})),
        json.dumps(inference(1.0, itl={"3": -1})),
        json.dumps(inference(1.0, itl=[])),
        "\x00\x01",
        "[" * 100_000,
    ],
    ids=range(17),
)
def test_a_bad_line_in_the_middle_is_left_out_and_numbered(tmp_path: Path, line: str) -> None:
    write(tmp_path / "a.jsonl", HEADER, request(1.0), line, request(2.0))
    (run,), (problem,) = read_logs(tmp_path)
    assert len(run.requests) == 2
    assert problem.reason == "1 unreadable lines left out: 3"


def test_lines_of_a_later_kind_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", HEADER, {"kind": "novelty", "t": 1}, request(2.0))
    (run,), problems = read_logs(tmp_path)
    assert (len(run.requests), problems) == (1, [])


def test_foreign_files_are_named_and_left_out(tmp_path: Path) -> None:
    make_logs(tmp_path)
    (tmp_path / "notes.txt").write_text("buy milk")
    (tmp_path / "records.jsonl").write_text('{"prompt": "hi"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "noise.jsonl").write_bytes(bytes(range(256)))
    write(tmp_path / "future.jsonl", {**HEADER, "format": 2})
    (tmp_path / "folder").mkdir()
    (tmp_path / "report.html").write_text("our own")
    (tmp_path / "itl.png").write_bytes(b"our own")
    runs, problems = read_logs(tmp_path)
    assert len(runs) == 1
    reasons = {problem.path.name: problem.reason for problem in problems}
    names = {"notes.txt", "records.jsonl", "empty.jsonl", "noise.jsonl", "future.jsonl", "folder"}
    assert set(reasons) == names
    assert "format 2; this version reads 1" in reasons["future.jsonl"]
    assert "no header" in reasons["records.jsonl"]


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        read_logs(tmp_path / "nothing")


# --- figures ---


def test_the_figures_of_a_run_by_hand(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        {**HEADER, "machine": {"device": "M9", "backend": "metal"}, "notes": {"target": "big"}},
        inference(0.5),
        inference(1.0, tokens=30, rows=4.0, peak_memory=2 * 10**9),
        request(1.0),
        request(1.0, reason="cancelled", ttft=None, tpot=None, acceptance=None),
        {"kind": "event", "t": 1.0, "event": "preempted"},
    )
    (run,), _ = read_logs(tmp_path)
    summary = summarise(run, Limits(ttft=0.1), 7)
    figures = summary.figures
    assert summary.machine == "M9 (metal)"
    assert summary.models == "big"
    assert summary.name == "7: big, 2026-01-02 03:04"
    assert figures["requests"] == "2 (1 cancelled, 1 stop)"
    assert figures["tokens"] == "80"
    assert figures["throughput"] == "80.0 tok/s"
    assert figures["acceptance"] == "75.0%"
    assert figures["tokens a pass"] == "2.00"
    # 20 row steps in 10 steps of 4 places, and 20 in 5 of 4.
    assert figures["occupancy"] == "2.7 of 4 rows"
    assert figures["TTFT"] == "100 / 100 / 100 ms"
    low, middle, high = (float(v) for v in figures["ITL"][:-3].split(" / "))
    assert low == middle == high == pytest.approx(50, rel=0.0101)
    assert figures["peak memory"] == "2.000 GB"
    assert figures["goodput"] == "1.00 requests/s (100% within the limits)"
    assert figures["preempted"] == "1"
    assert figures["log"] == "incomplete"
    # Every figure stands in a table, and every word of a table that needs one has its sentence.
    assert set(figures) == {label for labels in GROUPS.values() for label in labels}
    assert set(figures) - {"requests", "errors"} <= set(TERMS)


def test_each_drafter_has_its_figures_where_the_log_says_them(tmp_path: Path) -> None:
    counts = [{"ngram": [4, 3]}, {"ngram": [6, 3], "model": [10, 9]}, {"model": "?"}, None]
    lines = [inference(1.0 + n, drafters=each) for n, each in enumerate(counts)]
    write(tmp_path / "a.jsonl", HEADER, *lines)
    logs, _ = read_logs(tmp_path)
    said = summarise(logs[0]).figures["by drafter"]
    assert said == "ngram 60.0% of 10, model 90.0% of 10"


def test_a_header_of_nonsense_is_shown_as_unknown(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {**HEADER, "machine": 7, "models": [], "notes": None, "started": 3})
    logs, problems = read_logs(tmp_path)
    assert "? (?)" in terminal(logs, problems)


def test_the_terminal_shows_figures_stages_and_problems(tmp_path: Path) -> None:
    make_logs(tmp_path)
    (tmp_path / "notes.txt").write_text("buy milk")
    text = terminal(*read_logs(tmp_path))
    for part in ("big<b> + small", "50.0%", "filter", "10.00", "notes.txt: not a performance log"):
        assert part in text


def test_eighty_columns_hold_models_in_folders_far_down(tmp_path: Path) -> None:
    """The folder's own name, whole; as many runs as fit, and the word of what is not shown."""
    deep = "/home/somebody/models/of/all/kinds/SmolLM2-135M-Instruct"
    for number in range(5):
        header = {**HEADER, "run": f"r{number}", "started": f"2026-01-02T03:0{number}"}
        notes = {"target": deep, "draft": "mlx-community/SmolLM2-60M"}
        slow = request(1.0, ttft=12.5, tpot=1.25)
        records = ({**header, "notes": notes}, inference(1.0), slow)
        write(tmp_path / f"{number}.jsonl", *records)
    text = terminal(*read_logs(tmp_path), width=80)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "run 5  2026-01-02 03:04  SmolLM2-135M-Instruct + SmolLM2-60M" in text
    assert "12.5 / 12.5 / 12.5 s" in text
    assert "somebody" not in text
    shown = text.count("  SmolLM2-135M-Instruct + SmolLM2-60M")
    assert 2 <= shown < 5
    assert f"{5 - shown} older run" in text
    assert "so it may lie above TPOT" in " ".join(text.split())


def test_a_log_s_reused_prompt_tokens_are_named(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        HEADER,
        request(1.0, prompt_tokens=600, reused_tokens=512),
        request(2.0, prompt_tokens=700, reused_tokens=512),
    )
    ((run,), _) = read_logs(tmp_path)
    assert summarise(run).figures["prompt tokens"] == "1,300 (1,024 reused)"


# --- the command ---


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_logs(tmp_path)
    assert main(["report", str(tmp_path), "--ttft-limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "goodput" in out
    assert "filter" in out


def test_the_command_without_logs_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("buy milk")
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds no performance logs; left out:" in error


def test_charts_without_matplotlib_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_logs(tmp_path / "logs")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["report", str(tmp_path / "logs"), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'mlx-spec[report]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_charts_and_a_page(tmp_path: Path) -> None:
    logs, out = tmp_path / "logs", tmp_path / "out"
    make_logs(logs)
    make_logs(logs)
    (logs / "<i>notes.txt").write_text("buy milk")
    assert main(["report", str(logs), "--out", str(out)]) == 0
    charts = {"throughput", "acceptance", "draft_length", "batch_occupancy", "ttft", "itl"}
    assert {path.stem for path in out.glob("*.png")} == charts
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    page = (out / "report.html").read_text(encoding="utf-8")
    # Each of them for light and for dark surroundings.
    assert page.count("data:image/png;base64,") == 12
    assert page.count("(prefers-color-scheme: dark)") == 1 + 6
    # It stands alone, and what the logs hold is text. (Any four letters may stand in base64.)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", page)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "big&lt;b&gt;" in page
    assert "&lt;i&gt;notes.txt" in page


@pytest.mark.parametrize(
    "records",
    [
        [],
        [request(1.0, ttft=None, tpot=None, acceptance=None)],
        [inference(0.5)],
        [inference(0.5, tok_s=0.0, draft_length=0.0, rows=0.0, row_steps=0, itl={})],
        [inference(0.5), inference(900.0)],
    ],
    ids=["nothing", "no first token", "one line", "zeros", "a long pause"],
)
@pytest.mark.filterwarnings("error")
def test_thin_logs_make_charts_too(tmp_path: Path, records: list[Any]) -> None:
    write(tmp_path / "a.jsonl", HEADER, *records)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").exists()
