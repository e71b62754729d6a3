"""``mlx-spec bench`` as a user meets it, on a tiny model: what it compares, says and writes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlx_spec.bench import course
from mlx_spec.bench.arms import AGAIN, PLAIN, ArmRun, OurArm
from mlx_spec.bench.bandwidth import Bandwidth
from mlx_spec.cli.main import main
from mlx_spec.errors import UnsupportedModel
from tests.bench_runs import SCHEMA, with_token
from tests.folders import write_folder
from tests.test_interrupts import Pressing

RUN = ("--max-tokens", "6", "--rounds", "2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A target, a draft of the same kind, and prompts that repeat themselves."""
    home = tmp_path_factory.mktemp("bench")
    prompts = home / "mine.jsonl"
    texts = ["abcabcabcabc", "to be or not to be", "one two one two", "la la la la"]
    lines = [{"prompt": text, "category": "ab"[index % 2]} for index, text in enumerate(texts)]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    target = write_folder(home / "target", max_position_embeddings=512)
    draft = write_folder(home / "draft", max_position_embeddings=512, num_hidden_layers=1)
    return {"target": str(target), "draft": str(draft), "prompts": str(prompts)}


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing half a gigabyte of memory is for users."""
    monkeypatch.setattr(course, "measure_bandwidth", lambda: Bandwidth(2e9, 1e9))


def run(folders: dict[str, str], *more: str, batches: str = "1,3") -> int:
    given = ["--model", folders["target"], "--prompts", folders["prompts"]]
    return main(["bench", *given, *RUN, "--batch-sizes", batches, *more])


def test_everything_is_compared_and_told_as_json(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--draft-model", folders["draft"], "--compare", "mlx-lm", "--json")
    assert run(folders, *more, "--out", str(tmp_path / "out")) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    jsonschema.validate(record, SCHEMA)
    one, three = record["cells"]
    lengths = [f"mlx-lm draft K={length}" for length in (2, 4, 6)]
    assert list(one["arms"]) == [PLAIN, AGAIN, "draft", "ngram", "mlx-lm", *lengths]
    assert list(three["arms"]) == [PLAIN, AGAIN, "draft", "ngram", "mlx-lm"]
    assert (one["prompts"], three["prompts"]) == (4, 4)
    for cell in (one, three):
        assert cell["arms"][PLAIN]["ratios"] == [1.0, 1.0]
        assert all(arm["same_text"] for arm in cell["arms"].values())
        made = {round_["tokens"] for arm in cell["arms"].values() for round_ in arm["rounds"]}
        assert len(made) <= 2  # mlx-lm counts the token that ends a text otherwise
    assert set(one["arms"]["draft"]["by_kind"]) == {"a", "b"}
    assert three["arms"]["draft"]["by_kind"] == {}
    assert "2 rounds: about " in shown.err
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == record
    chart = (tmp_path / "out" / "bench.svg").read_text()
    assert chart.startswith("<?xml")


def test_a_recommended_command_can_be_pasted(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, "--draft", "ngram", "--temp", "0.5", "--json", "-q") == 0
    record = json.loads(capsys.readouterr().out)
    one, many = (shlex.split(each["command"]) for each in record["recommended"])
    assert one[:4] == ["mlx-spec", "generate", "--model", folders["target"]]
    assert many[:4] == ["mlx-spec", "batch", "IN.jsonl", "OUT.jsonl"]
    assert "0.5" in one
    assert main([*one[1:], "-p", "abab", "--max-tokens", "2", "-q"]) == 0


def test_a_table_fits_a_terminal(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(folders, "-q") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    table, recommended = shown.out.split("What to use on this machine")
    rows = [line for line in table.splitlines() if line.rstrip().endswith("same")]
    assert len(rows) == 4  # the same again, and n-grams, of both cells
    assert all(len(line) <= 80 for line in table.split("over plain: medians")[0].splitlines())
    assert "one prompt at a time: " in recommended
    assert f"mlx-spec generate --model {folders['target']}" in recommended


def test_drafts_that_lie_here_are_told_of(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its kind and size of vocabulary, and small enough; once one is tried, none."""
    home = Path(folders["target"]).parent
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    if not (home / "small").exists():
        write_folder(home / "small", **small)
        write_folder(home / "other", **small, vocab_size=300)
    monkeypatch.chdir(home)
    assert run(folders, batches="1") == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "smaller models" in line]
    assert "to try one, too: --draft-model ./small" in told
    assert "./other" not in told
    assert "./target" not in told
    assert run(folders, "--draft-model", "./small", batches="1") == 0
    shown = capsys.readouterr()
    assert "smaller models" not in shown.err
    assert " small " in shown.out


def test_arms_run_in_turn_and_another_one_first_each_time(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, order = OurArm.run, []

    def watched(self: OurArm, prompts: Any, batch: int, tokens: int) -> ArmRun:
        if tokens == 6:
            order.append(self.name)
        return own(self, prompts, batch, tokens)

    monkeypatch.setattr(OurArm, "run", watched)
    assert run(folders, "-q", batches="1") == 0
    assert order == [PLAIN, AGAIN, "ngram", AGAIN, "ngram", PLAIN]


def planted(change: Callable[[ArmRun, int], ArmRun]) -> Callable[..., ArmRun]:
    """``OurArm.run`` with a fault in what n-grams say; ``change`` gets the number of the run."""
    own, count = OurArm.run, 0

    def faulty(self: OurArm, prompts: Any, batch: int, tokens: int) -> ArmRun:
        nonlocal count
        made = own(self, prompts, batch, tokens)
        if self.name != "ngram" or tokens < 6:
            return made
        count += 1
        return change(made, count)

    return faulty


def test_a_text_that_differs_once_is_found_in_any_round(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token of one prompt, in the last run of the last cell."""

    def change(made: ArmRun, count: int) -> ArmRun:
        fast = {**made.figures, "tok/s": 1e3 * made.figures["tok/s"]}
        made = replace(made, figures=fast)
        return with_token(made, 2, 3, 255 - made.token_ids[2][3]) if count == 4 else made

    monkeypatch.setattr(OurArm, "run", planted(change))
    assert run(folders, "--json") == 1
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    one, three = (cell["arms"]["ngram"] for cell in record["cells"])
    assert one["same_text"]
    assert not three["same_text"]
    (difference,) = three["differences"]
    assert (difference["prompt"], difference["place"]) == (2, 3)
    assert not difference["near_tie"]
    assert not record["equal"]
    assert "differs from plain decoding" in shown.err
    told = {(each["arm"], each["batch_size"]) for each in record["recommended"]}
    assert ("ngram", 1) in told
    assert ("ngram", 3) not in told


@pytest.mark.parametrize("lost", [False, True], ids=["raised", "swallowed"])
@pytest.mark.parametrize(("at", "cells"), [(5, [1]), (8, [1, 3])])
def test_ctrl_c_shows_what_is_known(
    at: int,
    cells: list[int],
    lost: bool,
    folders: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole rounds of whole cells, of three runs each."""
    own, count = OurArm.run, 0

    def interrupted(self: OurArm, prompts: Any, batch: int, tokens: int) -> ArmRun:
        nonlocal count
        count += tokens == 6
        if count == at:
            Pressing()  # where it is swallowed
            if not lost:
                raise KeyboardInterrupt
        return own(self, prompts, batch, tokens)

    monkeypatch.setattr(OurArm, "run", interrupted)
    assert run(folders, "--json") == 130
    record = json.loads(capsys.readouterr().out)
    assert record["interrupted"]
    assert [cell["batch_size"] for cell in record["cells"]] == cells
    assert {len(arm["ratios"]) for cell in record["cells"] for arm in cell["arms"].values()} == {1}
    assert record["recommended"]


def test_ctrl_c_before_anything_is_known(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> ArmRun:
        raise KeyboardInterrupt

    monkeypatch.setattr(OurArm, "run", interrupted)
    assert run(folders) == 130
    shown = capsys.readouterr()
    assert "nothing is known yet" in shown.err
    assert shown.out == ""


def test_a_draft_that_the_model_refuses_is_left_out(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OurArm.run

    def refusing(self: OurArm, *arguments: Any) -> ArmRun:
        if self.name == "lookahead":
            raise UnsupportedModel("[lookahead] not of this model")
        return own(self, *arguments)

    monkeypatch.setattr(OurArm, "run", refusing)
    assert run(folders, "--draft", "lookahead,ngram", "--json") == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert record["left_out"] == {"lookahead": "[lookahead] not of this model"}
    assert all("lookahead" not in cell["arms"] for cell in record["cells"])
    assert "lookahead is left out: [lookahead] not of this model" in shown.err


def test_weights_are_measured_in_several_forms(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, "--quantize", "none,8:32", "--json", batches="2") == 0
    record = json.loads(capsys.readouterr().out)
    assert [cell["quantize"] for cell in record["cells"]] == [None, "8:32"]
    plain, eight = record["weights"]
    assert eight["bytes"] < plain["bytes"]
    commands = [each["command"] for each in record["recommended"]]
    assert ["--quantize 8:32" in command for command in commands] == [False, True]


def test_a_form_that_cannot_be_made_loses_nothing_of_the_others(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, "--quantize", "none,4,8:32", "--json", batches="2") == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert [cell["quantize"] for cell in record["cells"]] == [None, "8:32"]
    assert "no layer's width is a multiple" in record["left_out"]["quantized: 4"]
    assert "quantized: 4 is left out: " in shown.err
    assert run(folders, "--quantize", "4,none", batches="2") == 2  # before minutes are spent
    assert "no layer's width" in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_read_or_written_is_told_before_a_model_is_loaded(
    folders: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("mlx_spec.bench.contest.Models.pair", load)
    empty, taken = tmp_path / "empty.jsonl", tmp_path / "taken"
    empty.write_text("")
    taken.write_text("a file")
    mistakes = {
        ("--prompts", str(tmp_path / "none.jsonl")): "none.jsonl",
        ("--prompts", str(empty)): "empty.jsonl",
        ("--out", str(taken)): f"--out {taken}: File exists",
    }
    if sys.platform == "linux":
        mistakes["--out", "/proc"] = "[bench] --out /proc: "  # a folder that takes no files
    for given, words in mistakes.items():
        assert run(folders, *given) != 0
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_prompts_that_no_room_is_left_for_are_not_made(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of those that nobody asked for."""
    given = ["bench", "--model", folders["target"], *RUN, "--batch-sizes", "1", "--full", "--json"]
    assert main([*given, "--draft", "ngram"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["plan"]["lengths"] == [16, 128]
    assert "prompts of 512, 2048 tokens are left out: the model's context is 512" in shown.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--draft", "guess"), "names 'guess', expected one of"),
        (("--draft", "model"), "--draft model needs a --draft-model"),
        (("--draft-model", "./nowhere"), "nowhere"),
        (("--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--compare", "llama.cpp"), "expected mlx-lm"),
        (
            ("--set", "max_position_embeddings=16"),
            "prompt 2 of 3 has 18 tokens; the model's context",
        ),
    ],
)
def test_a_mistake_is_one_line(
    given: tuple[str, ...],
    words: str,
    folders: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(folders, *given) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mlx-spec: error: ")
    assert words in last
