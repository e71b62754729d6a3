"""``pipeline run --only`` and ``--from``: parts of a chain, on what the stages before them gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_spec.cli.main import main
from tests.folders import write_folder

CHAIN = """
input = "in.jsonl"
output = "out.jsonl"
[options]
model = "./model"
batch_size = 4
max_tokens = 6
temp = 0.9
[[stage]]
kind = "filter"
min_chars = 5
question = ""
[[stage]]
kind = "generate"
output_field = "first"
[[stage]]
kind = "generate"
output_field = "second"
"""
STAGES = ("1-filter", "2-generate", "3-generate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "model", max_position_embeddings=512)


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "model").symlink_to(model)
    lines = [{"text": f"def read_{i}(", "prompt": f"def read_{i}("} for i in range(9)]
    lines[4]["text"] = "x"
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = tmp_path / "chain.toml"
    path.write_text(CHAIN)
    return path


def files(config: Path) -> dict[str, bytes]:
    folder = config.parent
    paths = [folder / "out.jsonl", *(folder / "out.jsonl.stages" / f"{s}.jsonl" for s in STAGES)]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def run(config: Path, *more: str) -> int:
    return main(["pipeline", "run", str(config), *more])


def test_a_part_that_runs_again_gives_the_same(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sampled, without a seed of the user's: the run's own is kept."""
    assert run(config) == 0
    whole = files(config)
    assert len(whole) == 4
    capsys.readouterr()
    assert run(config, "--from", "2") == 0
    said = capsys.readouterr().err
    assert "[2-generate]" in said
    assert "[1-filter]" not in said
    assert "8 written" in said
    assert files(config) == whole
    assert run(config, "--only", "3-generate") == 0
    assert "[2-generate]" not in capsys.readouterr().err
    assert files(config) == whole


def test_stage_by_stage_is_the_whole_chain(config: Path, tmp_path: Path) -> None:
    assert run(config, "--seed", "3") == 0
    whole = files(config)
    (tmp_path / "out.jsonl").unlink()
    for path in (tmp_path / "out.jsonl.stages").iterdir():
        path.unlink()
    for number, stage in enumerate(("filter", "2", "3"), start=1):
        assert run(config, "--seed", "3", "--only", stage) == 0
        assert len(files(config)) == number + (number == 3)
    assert files(config) == whole


def test_only_in_the_middle_leaves_the_output(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config) == 0
    before = files(config)
    capsys.readouterr()
    assert run(config, "--only", "2-generate", "--max-tokens", "2") == 2
    # A stage before it had other options.
    assert "1-filter.jsonl belongs to another run: max_tokens was 6, now 2" in (
        capsys.readouterr().err
    )
    assert files(config) == before
    assert run(config, "--only", "2-generate") == 0
    assert "--from 3-generate goes on behind it" in capsys.readouterr().err
    assert files(config)["out.jsonl"] == before["out.jsonl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "2"], "1-filter has not run yet"),
        (["--from", "nothing"], "'nothing' is no stage; the stages are 1-filter, 2-generate"),
        (["--from", "generate"], "'generate' means several stages"),
        (["--only", "1", "--from", "2"], "give one of them"),
    ],
)
def test_what_cannot_be_run_is_said(
    options: list[str], words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, *options) == 2
    assert words in capsys.readouterr().err
    assert files(config) == {}


def test_an_unfinished_stage_is_not_gone_on_from(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config) == 0
    path = config.parent / "out.jsonl.stages" / "2-generate.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    capsys.readouterr()
    assert run(config, "--only", "3") == 2
    said = capsys.readouterr().err
    assert "2-generate has 5 of 8 records done; --from 2-generate --resume goes on" in said
    assert run(config, "--from", "2", "--resume") == 0
    assert "5 done before" in capsys.readouterr().err


OWN = """
from dataclasses import dataclass
from typing import ClassVar
from mlx_spec.pipeline import Done, Stage

@dataclass(frozen=True)
class Shout(Stage):
    kind: ClassVar[str] = "shout"
    field: str = "text"
    uses = "nothing"

    def prepare(self, fields):
        return Done({"loud": fields[self.field].upper()})

    def complete(self, fields, answer):
        return answer

class Half(Stage):
    kind = "half"

class NoStage:
    kind = "none"
"""


def test_a_stage_of_ones_own(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "own_stages_here.py").write_text(OWN)
    text = config.read_text().partition("[[stage]]")[0]
    config.write_text(f'{text}[[stage]]\nkind = "own_stages_here:Shout"\n')
    assert run(config, "--only", "shout") == 0
    records = [json.loads(line) for line in files(config)["out.jsonl"].splitlines()]
    assert records[0]["loud"] == "DEF READ_0("
    for kind, words in [
        ("own_stages_here:NoStage", "is no class that derives from Stage"),
        ("own_stages_here:Half", "cannot be made: Can't instantiate abstract class"),
        ("own_stages_here:Nothing", "has no attribute 'Nothing'"),
        ("nowhere_at_all:Shout", "cannot be imported: ModuleNotFoundError"),
        ("shout", "or module:Class for a stage of your own"),
    ]:
        config.write_text(f'{text}[[stage]]\nkind = "{kind}"\n')
        assert run(config) == 2
        assert words in " ".join(capsys.readouterr().err.split())
