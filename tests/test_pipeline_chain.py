"""``mlx-spec pipeline run``: configs, chains that go on after a crash, and the examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.config_file import read_config
from tests.jsonl import read_lines

HEAD = 'input = "in.jsonl"\noutput = "out.jsonl"\n'
CHAIN = f"""{HEAD}
[options]
batch_size = 3
max_tokens = 6
[[stage]]
kind = "filter"
min_chars = 5
question = "Is it code?"
threshold = 1
[[stage]]
kind = "classify"
labels = ["code", "function name", "soup"]
[[stage]]
kind = "generate"
temp = 0.9
seed = 3
[[stage]]
kind = "align"
policy = "no soup"
"""


def write_config(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def write_input(folder: Path) -> None:
    lines = [json.dumps({"text": f"def read_{i}(path):", "id": i}) for i in range(14)]
    lines[2] = '{"text": "hi"}'
    lines[5] = "broken"
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")


# --- configs --------------------------------------------------------------------------------

BAD = {
    "no TOML": ("input = ", "not TOML"),
    "no input": ('output = "a.jsonl"', "top level: no input, expected input ="),
    "no stage": (HEAD, r"no \[\[stage\]\]"),
    "an unknown table": (f"{HEAD}[option]\n", "top level: unknown key 'option'; did you mean"),
    "no kind": (f"{HEAD}[[stage]]\n", r"\[\[stage\]\] 1: kind=None, expected one of filter"),
    "another kind": (f'{HEAD}[[stage]]\nkind = "sort"', "kind='sort'"),
    "a stage misspelt": (f'{HEAD}[[stage]]\nkind = "classfy"', "did you mean 'classify'"),
    "one table": (
        f'{HEAD}[stage]\nkind = "filter"',
        r"one table; stages are a list: \[\[stage\]\]",
    ),
    "a typo": (
        f'{HEAD}[[stage]]\nkind = "classify"\nlabel = ["a", "b"]',
        r"\[\[stage\]\] 1 \(classify\): unknown key 'label'; did you mean 'labels'",
    ),
    "a key of another stage": (
        f'{HEAD}[[stage]]\nkind = "filter"\npolicy = "p"',
        r"\(filter\): unknown key 'policy'",
    ),
    "a wrong type": (
        f'{HEAD}[[stage]]\nkind = "filter"\nmin_chars = "5"',
        r"\(filter\): min_chars = '5', expected an integer",
    ),
    "a truth value for a number": (
        f"{HEAD}[options]\nbatch_size = true",
        r"\[options\]: batch_size = True, expected an integer",
    ),
    "a string for a list": (
        f'{HEAD}[[stage]]\nkind = "classify"\nlabels = "a"',
        "labels = 'a', expected a list of strings",
    ),
    "a bad value": (
        f'{HEAD}[[stage]]\nkind = "filter"\n[[stage]]\nkind = "filter"\nthreshold = 2.0',
        r"\[\[stage\]\] 2 \(filter\): \[filter\] threshold=2.0",
    ),
    "a bad flag": (
        f'{HEAD}[[stage]]\nkind = "structure"\ntemp = -1.0',
        r"\(structure\): \[SamplingParams\] temperature=-1.0",
    ),
    "no template": (
        f'{HEAD}[[stage]]\nkind = "structure"\nprompt_template = "@none.j2"',
        r"\(structure\): \[structure\] .*none.j2: No such file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_names_file_table_and_key(case: str, tmp_path: Path) -> None:
    text, words = BAD[case]
    path = write_config(tmp_path, text)
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_options_reach_all_stages_and_stages_may_differ(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, CHAIN))
    assert [entry.name for entry in config.stages] == [
        "1-filter",
        "2-classify",
        "3-generate",
        "4-align",
    ]
    assert [entry.flags.temp for entry in config.stages] == [0, 0, 0.9, 0]
    assert {entry.flags.batch_size for entry in config.stages} == {3}
    assert config.input == tmp_path / "in.jsonl"
    assert config.work == tmp_path / "out.jsonl.stages"


def test_no_config_and_no_input_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "run", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: No such file" in capsys.readouterr().err
    assert main(["pipeline", "run", str(write_config(tmp_path, CHAIN))]) == 2
    assert "in.jsonl: No such file" in capsys.readouterr().err


RULES = """
[[stage]]
kind = "filter"
question = ""
"""


def test_an_output_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_input(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    cases = {
        "folder.jsonl": "folder.jsonl is not a regular file",
        ".": "tells no format",
        "in.jsonl": "both input and output",
        "in.jsonl/out.jsonl": "1-filter.jsonl: Not a directory",
    }
    for output, words in cases.items():
        text = f'input = "in.jsonl"\noutput = "{output}"\n{RULES}'
        assert main(["pipeline", "run", str(write_config(tmp_path, text)), "--overwrite"]) == 2
        shown = capsys.readouterr().err
        assert words in shown
        assert shown.count("\n") == 1


def test_an_output_that_takes_nothing_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stages are done when the output turns out to have no place; --resume gives it one."""
    write_input(tmp_path)
    where = tmp_path / "later"
    where.write_text("in the way")
    head = 'input = "in.jsonl"\noutput = "later/out.jsonl"\nwork = "stages"\n'
    config = str(write_config(tmp_path, head + RULES))
    assert main(["pipeline", "run", config, "-q"]) == 2
    shown = capsys.readouterr().err
    assert f"all records are in {tmp_path / 'stages' / '1-filter.jsonl'}" in shown
    assert shown.count("\n") == 1
    where.unlink()
    assert main(["pipeline", "run", config, "-q", "--resume"]) == 1
    assert len(read_lines(where / "out.jsonl")) == 14


# --- runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the chain has run, undisturbed."""
    folder = tmp_path_factory.mktemp("chain")
    write_input(folder)
    assert main(["pipeline", "run", str(write_config(folder, CHAIN)), "-q"]) == 1
    return folder


def test_a_chain_drops_carries_errors_and_adds_fields(finished: Path) -> None:
    work = finished / "out.jsonl.stages"
    stages = [read_lines(path) for path in sorted(work.glob("*.jsonl"))]
    assert [len(stage) for stage in stages] == [14, 13, 13, 13]
    short = stages[0][2]
    assert short["reason"] == "too short: 2 characters, 5 wanted"
    out = read_lines(finished / "out.jsonl")
    assert [record["_record"] for record in out] == [1, 2, *range(4, 15)]
    for record in out:
        if record["_record"] == 6:
            assert record["error"].startswith("[records] line 6: not JSON")
            assert "label" not in record
            continue
        assert record["keep"]
        assert set(record["scores"]) == {"code", "function name", "soup"}
        assert sum(record["scores"].values()) == pytest.approx(1, abs=1e-3)
        assert record["label"] == max(record["scores"], key=record["scores"].get)
        assert record["output"]
        assert record["flagged"] == (record["policy_score"] >= 0.5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_chain_cut_in_any_stage_goes_on_to_the_same_bytes(
    finished: Path, stage: int, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    out, work = tmp_path / "run" / "out.jsonl", tmp_path / "run" / "out.jsonl.stages"
    out.unlink()
    for number, path in enumerate(sorted(work.glob("*.jsonl"))):
        if number == stage:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if number > stage:
            path.unlink()
    assert main(["pipeline", "run", str(config), "-q", "--resume"]) == 1
    for path in [out, *work.glob("*.jsonl")]:
        assert path.read_bytes() == (finished / path.relative_to(tmp_path / "run")).read_bytes()


def test_a_chain_is_not_begun_over_its_output_and_goes_on_only_unchanged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    assert main(["pipeline", "run", str(config)]) == 2
    assert "out.jsonl exists; --resume goes on, --overwrite begins" in capsys.readouterr().err
    config.write_text(CHAIN.replace("min_chars = 5", "min_chars = 4"))
    assert main(["pipeline", "run", str(config), "--resume"]) == 2
    assert "min_chars was 5, now 4" in capsys.readouterr().err
    config.write_text(CHAIN.replace("batch_size = 3", "batch_size = 5"))
    assert main(["pipeline", "run", str(config), "--resume"]) == 1
    assert "14 done before" in capsys.readouterr().err


def test_the_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "stages"]) == 0
    shown = capsys.readouterr().out
    for words in ("filter: keep or drop", "classify: one of", "policy = ''", "structure:"):
        assert words in shown
