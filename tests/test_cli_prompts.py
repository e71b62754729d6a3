"""What a user may type around the prompts: pipes, several texts of one, sizes, words half right."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

import mlx_spec
from mlx_spec.cli.commands import ORDER
from mlx_spec.cli.main import app, main
from mlx_spec.cli.notes import status
from mlx_spec.cli.prompts import DEMO_PROMPT, is_piped, read_prompts
from mlx_spec.cli.reading import PromptLine
from mlx_spec.cli.streaming import FRAME
from mlx_spec.cli.terminal import ERASE, marked
from mlx_spec.events import PromptProgress
from mlx_spec.pipeline.flag_values import memory_size
from tests.fakes import Terminal

DEMO = ("generate", "--model", "demo", "--draft-model", "demo-draft")


def test_several_texts_of_a_prompt_have_seeds_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stops four commands for four texts, and a text that nobody can have again."""

    def texts(*options: str) -> dict[int, str]:
        assert main([*DEMO, "-p", "import ", "-m", "16", "--temp", "0.8", "--json", *options]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {record["seed"]: record["text"] for record in records}

    four = texts("-n", "4", "--seed", "5")
    assert list(four) == [5, 6, 7, 8]
    assert len(set(four.values())) > 1
    assert texts("--seed", "7") == {7: four[7]}
    ((drawn, text),) = texts().items()
    assert texts("--seed", str(drawn)) == {drawn: text}


def test_a_seed_that_was_drawn_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "-p", "a", "-m", "2", "--temp", "0.5"]) == 0
    assert re.search(r"^Seed, one a text: \d+ \(drawn;", capsys.readouterr().out, re.MULTILINE)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Make stdin a real pipe that holds the bytes."""

    def pipe(data: bytes) -> None:
        reading, writing = os.pipe()
        with open(writing, "wb") as file:
            file.write(data)
        monkeypatch.setattr("sys.stdin", open(reading, encoding="utf-8"))  # noqa: SIM115

    return pipe


@pytest.mark.parametrize(
    ("data", "options", "prompts"),
    [
        (b"def f\n", [], ["def f\n"]),
        (b"def f", ["-p", "a"], ["a"]),
        (b"def f", ["-p", "a", "-p", "-"], ["a", "def f"]),
        (b"", [], [DEMO_PROMPT]),
        (b" \n", [], [DEMO_PROMPT]),
    ],
)
def test_what_is_piped_in_is_the_prompt_if_no_other_is_given(
    data: bytes,
    options: list[str],
    prompts: list[str],
    piped: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stops ``cat notes.txt | mlx-spec generate`` answering something else; an empty pipe, which
    a service may have for its stdin, counts for nothing."""
    piped(data)
    assert main(["generate", *options, "-m", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in shown.out.splitlines()] == prompts
    assert ("no --prompt given, using" in shown.err) == (prompts == [DEMO_PROMPT])


def test_a_silent_pipe_is_waited_for_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stops what looks like a hang."""
    monkeypatch.setattr("mlx_spec.cli.prompts._PATIENCE", 0.01)
    reading, writing = os.pipe()
    monkeypatch.setattr("sys.stdin", open(reading, encoding="utf-8"))  # noqa: SIM115
    threading.Timer(0.2, os.close, [writing]).start()
    assert read_prompts([], None) == []
    assert "reading the prompt from stdin" in capsys.readouterr().err


def test_devices_and_closed_files_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert not is_piped()
    assert not is_piped()  # closed by now
    monkeypatch.setattr("sys.stdin", None)
    assert not is_piped()


def test_a_closed_stdin_is_no_fault() -> None:
    """Stops "failed to open" for weights that got the number of stdin, as under some daemons."""
    code = (
        "import os; [os.close(n) for n in (0, 2)]\n"
        "from mlx_spec.cli.main import main; raise SystemExit(main(['generate', '-qm3']))"
    )
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=120)
    assert run.returncode == 0
    assert run.stdout.strip()


def test_quiet_shows_the_text_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-p", "def f(", "-m", "8", "-q"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert FRAME not in shown.out
    assert shown.out.strip()


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("8gb", 8e9), ("1GiB", 2**30), ("512 MB", 512e6), ("50%", 0.5), ("0.5", 0.5)],
)
def test_memory_sizes_as_people_write_them(text: str, size: float) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["8XB", "", "GB", "1.2.3", "-1", "nan"])
def test_other_sizes_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--memory-limit", text]) == 2
    assert "expected a size (8GB)" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "meant"), [("gen", "generate"), ("genrate", "generate")])
def test_a_mistyped_command_gets_a_suggestion(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    assert re.search(f"Did you mean '?{meant}", capsys.readouterr().err)


def test_completion_and_help_as_a_command() -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["help"]).output
    assert "--install-completion" in shown
    names = re.findall(r"^  ([a-z-]+)  +[A-Z]", shown.split("Start here:")[1], re.MULTILINE)
    assert names == list(ORDER)
    assert runner.invoke(app, ["help", "batch"]).output.startswith("Usage: ")
    assert runner.invoke(app, ["-V"]).output == f"mlx-spec {mlx_spec.__version__}\n"


def test_a_long_prompt_shows_how_far_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops minutes of silence; the line goes away when text comes, and never comes back."""
    monkeypatch.setattr("mlx_spec.cli.reading._PATIENCE", 0.0)
    monkeypatch.setattr("mlx_spec.cli.reading._EVERY", 0.0)
    out = Terminal()
    line = PromptLine(out)
    line(PromptProgress(0.0, 1024, 4096))
    assert out.getvalue() == f"{ERASE}reading prompts: 25% of 4,096 tokens"
    line.end()
    line.end()
    line(PromptProgress(0.0, 4096, 4096))
    assert out.getvalue() == f"{ERASE}reading prompts: 25% of 4,096 tokens{ERASE}"


def test_nothing_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Stops control characters in logs and pipes."""
    for line in (PromptLine(io.StringIO()), PromptLine(Terminal(), quiet=True)):
        line(PromptProgress(0.0, 1, 2))
        line.end()
        assert line._out.getvalue() == ""  # type: ignore[attr-defined]
    with status("loading"):
        assert capsys.readouterr().err == ""


def test_loading_is_said_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with status("loading x"):
        assert terminal.getvalue() == "loading x ..."
    assert terminal.getvalue() == f"loading x ...{ERASE}"


def test_a_prompt_that_is_too_long_is_one_line() -> None:
    """Stops transformers' own warning before it, which speaks of indexing errors."""
    code = (
        "import mlx_spec; mlx_spec.BatchStream\n"
        "import transformers.utils.logging as l; print(l.get_verbosity() == l.ERROR)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_VERBOSITY"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout == "True\n"


def test_marks_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert marked("x", io.StringIO()) == "x"
    assert marked("x", Terminal()) == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert marked("x", Terminal()) == "x"
