"""Every kind of bad input to ``mlx-spec generate`` is one line, and exit code 2."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_spec.cli.main import main
from mlx_spec.cli.stages import KINDS
from tests.folders import CONTEXT, byte_vocabulary, write_folder

Refused = Callable[..., str]


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


REFUSED: dict[str, tuple[list[str], str]] = {
    "a path without a model": (["--model", "./nothing"], "no such folder"),
    "a variable that is not set": (["--model", ""], "--model is empty"),
    "a draft without end": (["--num-draft-tokens", "1000000"], "expected 0..512"),
    "more memory than there is": (["--memory-limit", "150%"], "more than there is"),
    "no choice": (["--choices", "yes,"], "an empty text"),
    "a model misspelt": (["--model", "smolm2"], "did you mean smollm2?"),
    "a model by its title": (["--model", "SmolLM2-135M-Instruct"], "did you mean smollm2?"),
    "an empty prompt": (["-p", ""], "the prompt is empty"),
    "one empty prompt of two": (["-p", "a", "-p", ""], "prompt 2 of 2 is empty"),
    "a prompt that is no text": (["-p", "\udcff"], "not valid UTF-8"),
    "stdin twice": (["-p", "-", "-p", "-"], "given twice"),
    "no prompt file": (["--prompt-file", "/nothing"], "No such file"),
    "a folder as prompt file": (["--prompt-file", "/"], "Is a directory"),
    "max-tokens 0": (["-m", "0"], "max_tokens=0, expected an integer >= 1, or -1"),
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
    "a draft model that is none": (["--model", "demo", "--draft", "model"], "--draft-model"),
    "a drafter that is none": (["--draft", "oracle"], "'oracle', expected one of forced, head"),
    "a drafter misspelt": (["--draft", "ngram+hed"], "names 'hed' (did you mean head?)"),
    "no drafter by name": (["--draft", "none"], "--no-speculative"),
    "a draft's temperature of 0": (["--draft-temperature", "0"], "a number in (0, 100]"),
    "a head that nobody brings": (["--draft", "head"], "no tensors of a head"),
    "a model that is no head": (
        ["--draft", "head", "--draft-model", "demo-draft"],
        "demo-draft: no tensors of a head",
    ),
    "both kinds of draft model": (["--draft", "head+model"], "needs a draft head"),
    "a drafter without its model": (
        ["--model", "demo", "--draft", "model"],
        "--draft model needs a --draft-model",
    ),
    "a drafter twice": (["--draft", "ngram+ngram"], "names one of them twice"),
    "nothing to compare": (["--model", "demo", "--compare"], "--compare needs"),
    "a truth value misspelt": (["--verbose", "Flase"], "--verbose 'Flase'"),
    "many texts, all alike": (["-n", "2"], "give --temp"),
    "keywords that are no JSON": (["--chat-template-config", "{a: 1}"], "is not JSON"),
    "no such end token": (["--extra-eos-token", "<none>"], "is no token of this model"),
    "nowhere to save": (["--save-messages", "/nothing/chat.json"], "no such folder as /nothing"),
    "a folder to save in": (["--save-messages", "/"], "is a folder"),
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


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_closed_stdout(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main([command]) == 2
    assert f"[{command}] stdout is closed" in capsys.readouterr().err


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


def test_a_draft_with_other_ids_is_not_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It guesses the same tokens under their own ids there."""
    vocabulary = byte_vocabulary()
    vocabulary["d"], vocabulary["e"] = vocabulary["e"], vocabulary["d"]
    other = write_folder(tmp_path / "other", vocabulary)
    options = ["--model", str(tiny), "-p", "abcde", "-m", "8", "--no-adaptive", "--json"]
    assert main(["generate", *options]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["generate", *options, "--draft-model", str(other)]) == 0
    drafted = json.loads(capsys.readouterr().out)
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["drafted"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nothing"],
        ["generate", "--nothing"],
        ["nothing"],
        *([name] for name in (*KINDS, "train-draft", "cache-prompt")),  # and nothing behind it
        ["pipeline", "run"],
        ["batch", "in.jsonl"],
    ],
)
def test_an_unknown_option_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "Why is the sky blue?", "-m", "3"], "a prompt is given with -p"),
        (["Why is the sky blue?"], "mlx-spec generate -p"),
        (["--model", "demo"], "options follow a command"),
    ],
)
def test_habits_of_other_programs_are_answered(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
