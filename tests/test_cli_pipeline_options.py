"""``mlx-spec pipeline run``: flags over the config, stages of one's own, what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.pipeline.config_file import read_config
from mlx_spec.pipeline.flags import Flags
from tests.folders import CONTEXT, write_folder

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from mlx_spec.pipeline.stage import Done, Stage, text_of


@dataclass(frozen=True)
class Shout(Stage):
    kind: ClassVar[str] = "shout"
    about: ClassVar[str] = "the text, louder"
    field: str = "text"
    mark: str = "!"

    def prepare(self, fields):
        return Done({"shouted": text_of(fields, self.field).upper() + self.mark})

    def complete(self, fields, answer):
        raise NotImplementedError


class Odd(Stage):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = write_folder(tmp_path / "model") / "config.json"
    config.write_text(config.read_text().replace(f": {CONTEXT}", ": 2048"))
    lines = [json.dumps({"text": f"record {i}"}) + "\n" for i in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    (tmp_path / "own_stages.py").write_text(OWN)
    return tmp_path


def write(folder: Path, *stages: str, options: str = "") -> Path:
    path = folder / "config.toml"
    head = f'input = "in.jsonl"\noutput = "out.jsonl"\n[options]\n{options}\n'
    path.write_text(head + "".join(f"[[stage]]\n{stage}\n" for stage in stages))
    return path


def test_only_what_is_given_goes_before_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def reading(path: Path, given: dict[str, Any]) -> Any:
        seen.append(given)
        raise SystemExit(7)

    monkeypatch.setattr("mlx_spec.pipeline.config_file.read_config", reading)
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([], {}),
        (["--model", "m", "--batch-size", "3"], {"model": "m", "batch_size": 3}),
        (["--no-batching", "--no-speculative"], {"batching": False, "enable_speculative": False}),
        (["--stop", "a", "--stop", "b", "--temp", "0"], {"stop": ("a", "b"), "temp": 0.0}),
        (
            ["--memory-limit", "1GB", "--adapter-path", "x"],
            {"memory_limit": "1GB", "adapter_path": "x"},
        ),
    ]
    for options, expected in cases:
        assert main(["pipeline", "run", "c.toml", *options]) == 7
        assert seen.pop() == expected
        assert Flags(**expected)
    assert Flags(memory_limit="1GB").batches.memory_limit == 10**9


def test_flags_go_before_options_and_before_a_stage_s_own(folder: Path) -> None:
    path = write(
        folder,
        'kind = "generate"\ntemp = 0.5',
        'kind = "generate"\nbatch_size = 2',
        options='model = "./a"\nbatch_size = 4',
    )
    plain = [entry.flags for entry in read_config(path).stages]
    assert [(flags.model, flags.batch_size, flags.temp) for flags in plain] == [
        (str(folder / "a"), 4, 0.5),
        (str(folder / "a"), 2, 0.0),
    ]
    options = {"model": "./b", "batch_size": 3, "stop": ("a", "b")}
    given = [entry.flags for entry in read_config(path, options).stages]
    assert [(flags.model, flags.batch_size, flags.temp) for flags in given] == [
        ("./b", 3, 0.5),  # a path of the command line's is no path of the config's
        ("./b", 3, 0.0),
    ]
    assert given[0].stop == ("a", "b")


def test_a_run_says_which_stage_and_where_the_output_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_spec.pipeline.progress._LOG", 0.0)
    path = write(folder, 'kind = "filter"\nthreshold = 1e-6', 'kind = "own_stages:Shout"')
    assert main(["pipeline", "run", str(path), "--model", str(folder / "model")]) == 0
    said = capsys.readouterr().err
    assert "stage 1 of 2, 1-filter: 12/12 records" in said
    assert "[2-shout]" in said
    assert f"output in {folder / 'out.jsonl'}; each stage's" in said
    # Nothing is left, and that is not passed over.
    assert "warning: 1-filter: dropped 12 of 12; p(no) was 0." in said
    assert (folder / "out.jsonl").read_text() == ""


def test_a_stage_of_one_s_own_lies_beside_the_config(folder: Path) -> None:
    path = write(folder, 'kind = "own_stages:Shout"\nmark = "?"')
    assert main(["pipeline", "run", str(path), "-q"]) == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["shouted"] for row in rows] == [f"RECORD {i}?" for i in range(12)]
    assert (folder / "out.jsonl.stages" / "1-shout.jsonl").exists()


def test_a_stage_of_one_s_own_may_import_mlx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A BLAS that is loaded after mlx has no effect, and reading a config loads none."""
    calls: list[str] = []
    monkeypatch.setattr("mlx_spec.pipeline.config_file.ensure_blas", lambda: calls.append("blas"))
    monkeypatch.setattr("builtins.imported", calls, raising=False)
    (folder / "with_mlx.py").write_text(OWN + "imported.append('mlx')\n")
    read_config(write(folder, 'kind = "with_mlx:Shout"'))
    assert calls == ["blas", "mlx"]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ('kind = "nothing"', "expected one of filter, structure, classify, align, generate, or mo"),
        ('kind = "no_module:Shout"', "cannot be imported: ModuleNotFoundError"),
        ('kind = "own_stages:None_"', "cannot be imported: AttributeError"),
        ('kind = "own_stages:Odd"', "Odd.kind='', expected a word"),
        ('kind = "own_stages:Done"', "is no class that derives from Stage"),
        ('kind = "own_stages:Shout"\nmork = 1', "did you mean 'mark'?"),
    ],
)
def test_a_stage_that_is_none_is_refused(
    stage: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "run", str(write(folder, stage)), "-q"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_the_listing_shows_whole_prompts_and_all_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pipeline", "stages"]) == 0
    shown = capsys.readouterr().out
    assert "mode = 'flag'  (flag | rewrite)" in shown
    assert "mode = 'instruction'  (instruction | both)" in shown
    assert "| This text is an example of\n" in shown
    assert "| Rewrite the text so that it keeps to the policy and says the same" in shown
    assert "..." not in shown.replace("Instruction: ...", "").replace("Response: ...", "")
