"""The command as a user meets it: good runs, Ctrl-C, a closed pipe."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlx_spec
from mlx_spec.cli.main import app, main
from mlx_spec.cli.streaming import FRAME
from mlx_spec.errors import ModelLoadError
from tests.folders import write_folder
from tests.waiting import PATIENCE

DEMO = ("generate", "--model", "demo", "--draft-model", "demo-draft")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if quiet %}quiet{% endif %}"
)
FLOAT = r"\d+\.\d{3}"


def test_one_prompt_shows_text_and_mlx_lms_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-p", "def read_", "-m", "12"]) == 0
    shown = capsys.readouterr()
    assert "using the embedded demo and demo-draft" in shown.err
    frame, body, closing = shown.out.split(f"{FRAME}\n")
    assert frame == ""
    assert body.strip()
    lines = closing.splitlines()
    assert re.fullmatch(rf"Prompt: \d+ tokens, {FLOAT} tokens-per-sec", lines[0])
    assert re.fullmatch(rf"Generation: 12 tokens, {FLOAT} tokens-per-sec", lines[1])
    assert re.fullmatch(rf"Peak memory: {FLOAT} GB", lines[2])
    assert [line.split(":")[0] for line in lines[3:]] == [
        "Acceptance rate",
        "Mean acceptance length",
        "Draft lengths",
        "Steps with a draft",
        "Measured",  # the first run of these models in this process
    ]


def test_prompts_from_everywhere_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("third\n\n   \nfourth\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("second"))
    options = ["-p", "first", "-p", "-", "--prompt-file", str(tmp_path / "prompts.txt")]
    assert main([*DEMO, *options, "-m", "3", "--compare"]) == 0
    shown = capsys.readouterr().out
    titles = re.findall(r"\[prompt (\d)/4\] (\w+)", shown)
    assert titles == [("1", "first"), ("2", "second"), ("3", "third"), ("4", "fourth")]
    assert "all 12 identical" in shown


def test_speculation_batching_and_output_form_do_not_change_the_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = [*DEMO, "-p", "import ", "-p", "def f(", "-m", "16", "--temp", "0.8", "--seed", "5"]
    texts = []
    for change in ([], ["--no-speculative"], ["--no-batching"], ["--no-adaptive"]):
        assert main([*base, *change, "--json"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [record["index"] for record in records] == [0, 1]
        texts.append([record["text"] for record in records])
    assert all(text == texts[0] for text in texts)
    assert main([*base, "--verbose", "False"]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts[0])


def test_escapes_as_typed_are_not_interpreted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "-p", r"a\nb", "-m", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == r"a\nb"


def test_a_stop_text_ends_it_and_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "-p", "import os", "-m", "40", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    stop = text[6:9]
    assert main([*DEMO, "-p", "import os", "-m", "40", "--stop", stop, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["finish_reason"] == "stop"
    assert record["text"] == text[: text.index(stop)]


def test_a_chat_template_is_used_unless_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    run = ["generate", "--model", str(folder), "-p", "hi", "-m", "1", "--json"]
    for options, text in (
        ([], "<user>hi<assistant>"),
        (["--system-prompt", "be"], "<system>be<user>hi<assistant>"),
        (["--prefill-response", "Well"], "<user>hi<assistant>Well"),
        (["--chat-template-config", '{"quiet": true}'], "<user>hi<assistant>quiet"),
        (["--ignore-chat-template"], "hi"),
    ):
        assert main([*run, *options]) == 0
        assert json.loads(capsys.readouterr().out)["prompt_tokens"] == len(text), options
    assert main([*run, "--ignore-chat-template", "--prefill-response", "Well"]) == 0
    assert "--prefill-response is ignored" in capsys.readouterr().err


def test_doctor_describes_machine_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("backend", "memory", "BLAS", "mlx-lm", mlx_spec.__version__, "demo-draft"):
        assert word in shown
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["models"][0]["name"] == "demo"
    assert record["versions"]["mlx-spec"] == mlx_spec.__version__


def test_version_and_help() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).output == f"mlx-spec {mlx_spec.__version__}\n"
    shown = runner.invoke(app, ["generate", "--help"]).output
    mlx_lm = "--model --draft-model --num-draft-tokens --prompt --max-tokens --temp --top-p --top-k"
    mlx_lm += " --min-p --seed --prefill-step-size --system-prompt --prefill-response"
    mlx_lm += " --ignore-chat-template --chat-template-config --extra-eos-token --verbose"
    mlx_lm += " --adapter-path --trust-remote-code"
    for option in f"{mlx_lm} --temperature --batch-size --batch-timeout --no-batching".split():
        assert option in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mlx_spec.cli.main import main\n"
        "assert main(['generate', '--help']) == 0\n"
        "heavy = {'mlx', 'mlx.core', 'mlx_lm', 'transformers', 'numpy', 'rich.console'}\n"
        "print(heavy & sys.modules.keys(), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.stderr.strip() == "set()"


# --- interruptions --------------------------------------------------------------------------


def start(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlx_spec", "generate", "--max-tokens", "2000", "--ignore-eos"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def test_ctrl_c_prints_what_there_is_and_exits_130() -> None:
    process = start("-p", "def read_", "-p", "import ")
    assert process.stdout is not None
    first = [process.stdout.readline(), process.stdout.readline(), process.stdout.read(4)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    shown = "".join(first) + rest
    assert first[:2] == [f"{FRAME}\n", "[prompt 1/2] def read_\n"]
    assert "[prompt 2/2] import" in shown
    assert 0 < int(re.findall(r"Generation: (\d+) tokens", shown)[0]) < 4000


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_ctrl_c_that_a_library_wrapped_is_ctrl_c(
    link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While classes are made, Python 3.11 turns every exception into a RuntimeError."""
    wrapped: Exception = ModelLoadError("[load] it could not be read")
    setattr(wrapped, link, RuntimeError("Error calling __set_name__"))
    setattr(getattr(wrapped, link), link, KeyboardInterrupt())

    def interrupted(**_: object) -> None:
        raise wrapped

    monkeypatch.setattr("mlx_spec.cli.main.app", interrupted)
    assert main([]) == 130


def test_a_closed_pipe_ends_it_quietly() -> None:
    process = start("-p", "def read_")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == 1
    assert process.stderr is not None
    assert process.stderr.read().splitlines() == [
        "mlx-spec: no --model given, using the embedded demo and demo-draft, toys that write Python"
    ]
