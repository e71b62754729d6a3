"""The command as a user meets it: good runs, every kind of bad input, Ctrl-C, a closed pipe."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlx_spec
from mlx_spec.cli.main import app, main
from mlx_spec.cli.statistics import comparison_lines, statistics_lines
from mlx_spec.cli.streaming import FRAME, OrderedPrinter
from mlx_spec.errors import ModelLoadError
from mlx_spec.results import BatchResult, GenerationChunk, GenerationResult, GenerationStats
from tests.folders import CONTEXT, byte_vocabulary, write_folder

DEMO = ("generate", "--model", "demo", "--draft-model", "demo-draft")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if quiet %}quiet{% endif %}"
)
Refused = Callable[..., str]
FLOAT = r"\d+\.\d{3}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command and return its one line of error."""

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        shown = capsys.readouterr()
        errors = [line for line in shown.err.splitlines() if "error:" in line]
        assert len(errors) == 1, shown.err
        assert "Traceback" not in shown.err
        assert not shown.out
        return errors[0]

    return run


# --- good runs ------------------------------------------------------------------------------


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
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr.strip() == "set()"


# --- bad input ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], str]] = {
    "a path without a model": (["--model", "./nothing"], "no such folder"),
    "an empty prompt": (["-p", ""], "the prompt is empty"),
    "one empty prompt of two": (["-p", "a", "-p", ""], "prompt 2 of 2 is empty"),
    "a prompt that is no text": (["-p", "\udcff"], "not valid UTF-8"),
    "stdin twice": (["-p", "-", "-p", "-"], "given twice"),
    "no prompt file": (["--prompt-file", "/nothing"], "No such file"),
    "a folder as prompt file": (["--prompt-file", "/"], "Is a directory"),
    "max-tokens 0": (["-m", "0"], "max_tokens=0"),
    "temperature < 0": (["--temp", "-1"], "temperature=-1.0"),
    "temperature NaN": (["--temp", "nan"], "temperature=nan"),
    "top-p 0": (["--top-p", "0"], "top_p=0.0"),
    "top-k < 0": (["--top-k", "-1"], "top_k=-1"),
    "min-p > 1": (["--min-p", "1.5"], "min_p=1.5"),
    "seed < 0": (["--seed", "-1"], "seed=-1"),
    "an empty stop text": (["--stop", ""], "stop=''"),
    "draft length < 0": (["--num-draft-tokens", "-1"], "num_draft_tokens=-1"),
    "no rows": (["--batch-size", "0"], "batch_size=0"),
    "a timeout NaN": (["--batch-timeout", "nan"], "batch_timeout=nan"),
    "no prefill": (["--prefill-step-size", "0"], "prefill_step_size=0"),
    "a type that is none": (["--dtype", "int8"], "dtype='int8'"),
    "speculation without a draft": (["--model", "demo", "--enable-speculative"], "--draft-model"),
    "nothing to compare": (["--model", "demo", "--compare"], "--compare needs"),
    "a truth value misspelt": (["--verbose", "Flase"], "--verbose 'Flase'"),
    "many texts, all alike": (["-n", "2"], "give --temp"),
    "keywords that are no JSON": (["--chat-template-config", "{a: 1}"], "is not JSON"),
    "no such end token": (["--extra-eos-token", "<none>"], "is no token of this model"),
    "no adapter": (["--adapter-path", "/nothing"], "no such folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_exit_2(
    case: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, words = REFUSED[case]
    assert words in refused("generate", *options)


def test_a_hub_id_without_network(tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-m", "mlx_spec", "generate", "--model", "org/name", "-p", "x"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("mlx-spec: error: [load] org/name: it is not in the local cache")
    assert len(run.stderr.splitlines()) == 1


def test_an_empty_prompt_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    assert "no prompts in it" in refused("generate", "--prompt-file", str(tmp_path / "empty"))


def test_an_empty_stdin(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "is empty" in refused("generate", "-p", "-")


def test_a_prompt_longer_than_the_context(refused: Refused, tiny: Path) -> None:
    line = refused("generate", "--model", str(tiny), "-p", "x" * CONTEXT)
    assert f"{CONTEXT} tokens" in line
    assert f"context is {CONTEXT}" in line


def test_a_draft_with_another_tokenizer(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    vocabulary = byte_vocabulary()
    vocabulary["d"], vocabulary["e"] = vocabulary["e"], vocabulary["d"]
    other = write_folder(tmp_path / "other", vocabulary)
    line = refused("generate", "--model", str(tiny), "--draft-model", str(other))
    assert "in 2 of 257 tokens" in line
    assert re.search(r"'d' is \d+ in the target, \d+ in the draft", line)


@pytest.mark.parametrize("arguments", [["--nothing"], ["generate", "--nothing"], ["nothing"]])
def test_an_unknown_option_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Usage" in capsys.readouterr().err


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
    rest, errors = process.communicate(timeout=60)
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
    assert process.wait(timeout=60) == 1
    assert process.stderr is not None
    assert process.stderr.read().splitlines() == [
        "mlx-spec: no --model given, using the embedded demo and demo-draft, toys that write Python"
    ]


# --- the parts ------------------------------------------------------------------------------


def chunk(index: int, text: str, last: bool = False) -> GenerationChunk:
    return GenerationChunk(index, text, 0, False, "length" if last else None, 1, 1)


def test_texts_appear_in_order_and_the_first_one_live() -> None:
    out = io.StringIO()
    printer = OrderedPrinter(["p", "q", "r"], out)
    head = f"{FRAME}\n[prompt 1/3] p\n"
    steps = [
        (chunk(1, "B1"), head),
        (chunk(0, "A1"), f"{head}A1"),
        (chunk(2, "C1", last=True), f"{head}A1"),
        (chunk(0, "A2", last=True), f"{head}A1A2\n{FRAME}\n[prompt 2/3] q\nB1"),
        (chunk(1, "B2"), f"{head}A1A2\n{FRAME}\n[prompt 2/3] q\nB1B2"),
    ]
    for given, shown in steps:
        printer.add(given)
        assert out.getvalue() == shown
    printer.finish(["A1A2", "B1B2B3", "C1"])  # cut short: what was never given out as a chunk
    end = f"B3\n{FRAME}\n[prompt 3/3] r\nC1\n{FRAME}\n"
    assert out.getvalue() == steps[-1][1] + end


def test_an_empty_text_is_said() -> None:
    out = io.StringIO()
    OrderedPrinter(["p"], out).finish([""])
    assert out.getvalue() == f"{FRAME}\nNo text generated for this prompt\n{FRAME}\n"


def test_statistics_lines() -> None:
    stats = GenerationStats(
        prompt_tokens=10,
        generation_tokens=40,
        prompt_time=0.5,
        generation_time=2.0,
        peak_memory=1_500_000_000,
        drafted=30,
        accepted=15,
        row_steps=20,
        draft_lengths={0: 4, 3: 16},
        speculative_tps=21.0,
    )
    assert statistics_lines(stats, drafting=True) == [
        "Prompt: 10 tokens, 20.000 tokens-per-sec",
        "Generation: 40 tokens, 20.000 tokens-per-sec",
        "Peak memory: 1.500 GB",
        "Acceptance rate: 50.0% (15 of 30 draft tokens)",
        "Mean acceptance length: 2.00 tokens per verify pass",
        "Draft lengths: K=0: 4 steps, K=3: 16 steps",
        "Steps with a draft: 21.000 tokens-per-sec; without: too few such steps to tell",
    ]
    assert statistics_lines(stats, drafting=False)[3:] == ["Speculation: off"]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([1, 2, 3], None),
        ([1, 9, 3], "prompt 1 differs from token 2 on"),
        ([1, 2], "prompt 1 differs from token 3 on"),
    ],
)
def test_comparison_finds_the_first_difference(ours: list[int], verdict: str | None) -> None:
    stats = GenerationStats(generation_tokens=3, generation_time=1.0)
    plain = GenerationResult("", [1, 2, 3], "length", 1, 3, 0.1, 1.0)
    lines, equal = comparison_lines(
        BatchResult([replace(plain, token_ids=ours)], stats), BatchResult([plain], stats)
    )
    assert equal is (verdict is None)
    assert (verdict or "all 3 identical") in lines[-1]
    assert "3 tokens are too few to compare" in lines[0]


def test_compare_exits_1_when_tokens_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "mlx_spec.cli.generate_run.comparison_lines", lambda *_: (["differ"], False)
    )
    assert main([*DEMO, "-p", "a", "-m", "2", "--compare"]) == 1
    assert capsys.readouterr().out.endswith("differ\n")
