"""``mlx-spec batch`` as a user meets it: formats, errors, Ctrl-C, and ``kill -9`` at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from mlx_spec.cli.main import main
from mlx_spec.pipeline.progress import Progress, figures
from mlx_spec.pipeline.stage_runner import Tally
from mlx_spec.results import GenerationStats
from tests.folders import CONTEXT, write_folder
from tests.jsonl import read_lines
from tests.waiting import PATIENCE

SAMPLED = ("--temp", "0.9", "--top-p", "0.95", "--seed", "11")


def write_input(path: Path, count: int) -> Path:
    starts = ["def read_", "class Stack:", "import ", "for i in range(", "return self."]
    lines = [
        json.dumps({"prompt": f"# {i}\n{starts[i % len(starts)]}", "id": i}) for i in range(count)
    ]
    lines[3] = "not json"
    lines[7] = '{"id": 7}'
    path.write_text("\n".join(lines) + "\n")
    return path


def run(source: Path, out: Path, *options: str, tokens: int = 6) -> int:
    return main(["batch", str(source), str(out), "-q", "-m", str(tokens), *options])


# --- good runs ------------------------------------------------------------------------------


def test_every_record_comes_out_in_order_with_errors_where_they_belong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_input(tmp_path / "in.jsonl", 12), tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(out), "-m", "6", "--batch-size", "4"]) == 1
    records = read_lines(out)
    assert [record["_record"] for record in records] == list(range(1, 13))
    for number, record in enumerate(records, start=1):
        if number == 4:
            assert record["error"].startswith("[records] line 4: not JSON")
        elif number == 8:
            assert record["error"] == (
                "no field 'prompt', 'text' or 'messages'; the record's fields are: id"
            )
        else:
            assert record["output"]
            assert (record["id"], record["_generation_tokens"]) == (number - 1, 6)
    errors = capsys.readouterr().err
    assert "using the embedded demo" in errors
    assert "Acceptance rate:" in errors
    assert "Records: 12 written, 2 with an error (" in errors


def test_batching_speculation_and_order_do_not_change_a_text(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 10)
    texts = []
    for number, change in enumerate(
        [[], ["--no-speculative"], ["--no-batching"], ["--unordered", "--batch-size", "3"]]
    ):
        out = tmp_path / f"{number}.jsonl"
        assert run(source, out, *SAMPLED, *change) == 1
        texts.append({record["_record"]: record.get("output") for record in read_lines(out)})
    assert all(text == texts[0] for text in texts)
    assert len(set(texts[0].values())) > 5


def test_templates_limit_and_csv(tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('name,note\nread_file,"two\nlines"\nwrite_file,x\nlast,y\n')
    template = ["--prompt-template", "def {{ name }}(", "--output-field", "code"]
    assert run(source, out, *template, "--limit", "2") == 0
    header, *rows = out.read_text().split("\n", 1)
    assert header.startswith("name,note,code,_record,")
    assert "write_file" in rows[0]
    assert "last" not in rows[0]
    assert run(source, out, *template, "--resume") == 0
    assert "last" in out.read_text()


def test_parquet_in_and_out(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 9)
    assert run(source, tmp_path / "a.parquet") == 1
    table = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["_record"] for row in table] == list(range(1, 10))
    options = ["--prompt-field", "output"]
    assert run(tmp_path / "a.parquet", tmp_path / "b.jsonl", *options) == 1
    assert [r["_record"] for r in read_lines(tmp_path / "b.jsonl") if "error" in r] == [4, 8]


def test_chat_messages_and_too_long_prompts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "chat")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    (folder / "chat_template.jinja").write_text(template)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    lines: list[dict[str, Any]] = [
        {"m": messages},
        {"m": "no messages"},
        {"m": [{"role": "user", "content": "x" * CONTEXT}]},
        {"m": messages},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(source, out, "--model", str(folder), "--messages-field", "m", tokens=2) == 1
    first, second, third, last = read_lines(out)
    assert first["_prompt_tokens"] == len("<user>hi<assistant>")
    assert "field 'm' is text but not JSON" in second["error"]
    assert f"the model's context is {CONTEXT}" in third["error"]
    assert last["output"] == first["output"]


# --- crashes --------------------------------------------------------------------------------


def start(source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlx_spec", "batch", str(source), str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    """Until the output has so many whole lines, or the process has ended."""
    while process.poll() is None:
        if out.exists() and out.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("sampling", [(), SAMPLED], ids=["greedy", "sampled"])
def test_kill_9_then_resume_is_an_undisturbed_run(
    tmp_path: Path, sampling: tuple[str, ...]
) -> None:
    """Killed at random moments, gone on with another batch size: not a byte differs."""
    rng = random.Random(len(sampling))
    source = write_input(tmp_path / "in.jsonl", 30)
    undisturbed, out = tmp_path / "undisturbed.jsonl", tmp_path / "out.jsonl"
    assert run(source, undisturbed, *sampling, "--batch-size", "4", tokens=16) == 1
    kills = 0
    for lines in (1, 10, 19):
        options = ["-m", "16", "--batch-size", str(rng.randint(2, 6)), "--resume", *sampling]
        process = start(source, out, *options)
        wait_for_lines(process, out, lines + rng.randint(0, 4))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        done = out.read_bytes().count(b"\n")
        assert lines <= done < 30
        with out.open("ab") as file:  # as if the last write had been torn
            file.write(undisturbed.read_bytes().split(b"\n")[done][: rng.randint(0, 40)])
    assert kills == 3
    assert run(source, out, *sampling, "--resume", tokens=16) == 1
    assert out.read_bytes() == undisturbed.read_bytes()


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    source, out = write_input(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"
    model = str(write_folder(tmp_path / "model"))
    options = ["-m", "20", "--model", model, "--draft-model", model]
    process = start(source, out, *options)
    wait_for_lines(process, out, 9)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"go on with --resume: {out} keeps what is done" in errors
    assert 9 <= len(read_lines(out)) < 400
    assert main(["batch", str(source), str(out), "-q", "--resume", *options]) == 1
    assert main(["batch", str(source), str(tmp_path / "all.jsonl"), "-q", *options]) == 1
    assert out.read_bytes() == (tmp_path / "all.jsonl").read_bytes()


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt-template", "{{"], "[prompt-template] line 1"),
        (["--prompt-template", "@/nothing"], "No such file"),
        (["--prompt-field", "a", "--messages-field", "b"], "one says the prompt"),
        (["--temp", "-1"], "temperature=-1.0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--format", "xml"], "format 'xml'"),
        (["--limit", "0"], "--limit 0"),
        (["--model", "./nothing"], "no such folder"),
        (["--model", "demo", "--draft", "model"], "needs a --draft-model"),
        (["--output-field", ""], "output field ''"),
    ],
)
def test_bad_options_are_one_line_and_leave_no_file(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_input(tmp_path / "in.jsonl", 9), tmp_path / "out.jsonl"
    assert run(source, out, *options) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert len(shown.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_outputs_and_inputs_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_input(tmp_path / "in.jsonl", 9), tmp_path / "out.jsonl"
    out.write_text("precious\n")
    cases: list[tuple[Path, Path, list[str], str]] = [
        (source, out, [], "exists; --resume goes on with it"),
        (source, out, ["--resume"], "was not begun by this command"),
        (source, out, ["--resume", "--overwrite"], "choose"),
        (source, out, ["--retry-failed", "--overwrite"], "--retry-failed goes on with OUT"),
        (tmp_path / "list.json", out, ["--overwrite"], "jq -c '.[]'"),
        (source, out, ["--overwrite", "--model", "./nothing"], "no such folder"),
        (source, source, ["--overwrite"], "both input and output"),
        (tmp_path / "none.jsonl", tmp_path / "new.jsonl", [], "No such file"),
        (source, tmp_path / "new.txt", [], "tells no format"),
        (source, Path("-"), ["--resume"], "--resume needs files"),
        (source, Path("-"), ["--format", "parquet"], "Parquet"),
    ]
    for one, other, options, words in cases:
        assert run(one, other, *options) == 2, words
        assert words in capsys.readouterr().err
        assert out.read_text() == "precious\n"


def test_resume_refuses_another_input_and_other_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_input(tmp_path / "in.jsonl", 9), tmp_path / "out.jsonl"
    assert run(source, out) == 1
    assert run(source, out, "--resume", "--no-speculative", "--batch-size", "2") == 1
    assert run(source, out, "--resume", "--temp", "0.5") == 2
    assert "temp was 0.0, now 0.5" in capsys.readouterr().err
    write_input(source, 10)
    assert run(source, out, "--resume") == 2
    assert "the input, or a stage before this one, was another" in capsys.readouterr().err


# --- progress -------------------------------------------------------------------------------


def test_progress_is_lines_in_a_log_and_nothing_when_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally(skipped=2, written=10, failed=1)
    stats = GenerationStats(generation_tokens=100, drafted=10, accepted=5)
    assert figures(tally, stats, 2.0) == "5.0 items/s, 50 tok/s, acceptance 50%, 1 failed"
    monkeypatch.setattr("mlx_spec.pipeline.progress._LOG", 0.0)
    for quiet in (False, True):
        with Progress("batch", 40, quiet) as progress:
            progress(tally, lambda: stats)
            progress(tally, lambda: stats)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (0 if quiet else 2)
        assert all(line.startswith("mlx-spec: batch: 12/40 records, ") for line in lines)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_progress_is_a_bar_on_a_terminal(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 12)
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "mlx_spec", "batch", str(source), "-", "-m", "30"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        shown = b""
        try:
            while block := os.read(leader, 4096):
                shown += block
        except OSError:  # how a pseudo-terminal says that the other end is closed
            pass
        finally:
            os.close(leader)
    assert process.returncode == 1
    assert b"12/12" in shown or b"/12" in shown
    assert b"items/s" in shown
