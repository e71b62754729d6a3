"""A command a stage: its options are the dataclass's, its outputs those of ``batch``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.cli.stages import KINDS
from mlx_spec.pipeline.stages import STAGES
from tests.folders import CONTEXT, write_folder
from tests.jsonl import read_lines

TEXTS = ["def read(path): return 1", "hi", "Bake the bread for an hour.", "Stir the soup, slowly."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four records and a model that takes them."""
    config = write_folder(tmp_path / "model") / "config.json"
    config.write_text(config.read_text().replace(f": {CONTEXT}", ": 2048"))
    lines = [json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    return tmp_path


def run(folder: Path, kind: str, *options: str, out: str = "out.jsonl") -> int:
    files = [str(folder / "in.jsonl"), str(folder / out)]
    return main([kind, *files, "--model", str(folder / "model"), "-q", *options])


def test_all_options_of_the_stage_and_of_batch_are_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["batch", "--help"]) == 0
    shown = capsys.readouterr().out.split()
    common = {word.strip("[],/") for word in shown if word.startswith("--")}
    common -= {"--prompt-field", "--messages-field", "--output-field", "--sampling-fields"}
    assert {"--batch-size", "--resume", "--performance-log", "--draft-model"} <= common
    for name, kind in KINDS.items():
        assert main([name, "-h"]) == 0
        text = capsys.readouterr().out
        flags = {word.strip("[],/") for word in text.split() if word.startswith("--")}
        own = {f"--{item.name.replace('_', '-')}" for item in fields(STAGES[kind])}
        assert common | own <= flags, kind
        assert " ".join(text.split()).startswith(f"Usage: mlx-spec {name} [OPTIONS] {{IN}} {{OUT}}")
        for item in fields(STAGES[kind]):
            assert item.metadata["help"].split()[0] in text, item.name
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {kind} " in listed for kind in KINDS)


def test_help_imports_no_mlx() -> None:
    code = (
        "import sys; from mlx_spec.cli.main import main; main(['classify', '--help']); "
        "main(['--help']); print('mlx' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_classify_writes_as_it_goes_and_resumes(folder: Path) -> None:
    options = (
        "--labels",
        "code, cooking",
        "--labels",
        "sports",
        "--prompt-template",
        "{{ text }}:",
    )
    assert run(folder, "classify", *options, "--limit", "2") == 0
    assert run(folder, "classify", *options) == 2  # exists
    assert run(folder, "classify", *options, "--resume", "--no-batching") == 0
    rows = read_lines(folder / "out.jsonl")
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert all(list(row["scores"]) == ["code", "cooking", "sports"] for row in rows)
    assert run(folder, "classify", "--labels", "a,b", out="b.csv") == 0
    assert (folder / "b.csv").read_text().startswith("text,id,label,scores")


def test_filter_leaves_out_what_it_drops_and_keeps_the_reasons(folder: Path) -> None:
    options = ("--question", "", "--min-chars", "5", "--must-not-match", "soup")
    assert run(folder, "filter", *options, "--limit", "2") == 0
    assert [row["id"] for row in read_lines(folder / "out.jsonl")] == [0]
    for again in range(2):  # the second time there is nothing left to do
        assert run(folder, "filter", *options, "--resume") == 0, again
        assert [row["id"] for row in read_lines(folder / "out.jsonl")] == [0, 2]
        everything = read_lines(folder / "out.jsonl.all.jsonl")
        assert [row["keep"] for row in everything] == [True, False, True, False]
        assert everything[1]["reason"] == "too short: 2 characters, 5 wanted"
    assert run(folder, "filter", *options, out="kept.csv") == 0
    assert (folder / "kept.csv").read_text().count("\n") == 3
    assert not (folder / "kept.csv.part.jsonl").exists()


def test_filter_to_stdout(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for format, count in (("jsonl", 3), ("csv", 4)):
        options = ("--question", "", "--min-chars", "5", "-q", "--format", format)
        assert main(["filter", str(folder / "in.jsonl"), "-", *options]) == 0
        assert capfdbinary.readouterr().out.count(b"\n") == count


def test_a_field_in_no_record_is_an_error_of_each(folder: Path) -> None:
    assert run(folder, "filter", "--field", "txt", "--question", "") == 1
    rows = read_lines(folder / "out.jsonl")
    assert len(rows) == 4
    assert all("no field 'txt'; the record's fields are: text, id" in row["error"] for row in rows)


def test_structure_and_align(folder: Path) -> None:
    assert run(folder, "structure", "-m", "4", "--batch-size", "2", "--temp", "1") in (0, 1)
    assert len(read_lines(folder / "out.jsonl")) == 4
    asked = ("--policy", "No soup.", "--answers", "soup,bread")
    assert run(folder, "align", *asked, out="a.jsonl") == 0
    flags = [row["flagged"] for row in read_lines(folder / "a.jsonl")]
    assert run(folder, "align", *asked, "--drop", out="d.jsonl") == 0
    assert len(read_lines(folder / "d.jsonl")) == flags.count(False)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("classify", ("--labels", "one"), "labels=['one'], expected at least two"),
        ("filter", ("--answers", "a,b,c"), "answers=['a', 'b', 'c'], expected exactly 2"),
        ("align", (), "policy is empty"),
        ("classify", ("--labels", "a,b", "--calibration", "x"), "calibration='x'"),
        ("classify", ("--labels", "a,b", "--batch-size", "0"), "batch_size"),
    ],
)
def test_bad_options_are_refused(
    kind: str, options: tuple[str, ...], words: str, folder: Path, capsys: Any
) -> None:
    assert run(folder, kind, *options) == 2
    assert words in capsys.readouterr().err
    assert not list(folder.glob("out.*"))


# --- one verdict for nearly all ---------------------------------------------------------------


def test_one_verdict_for_all_is_said(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"text": f"record {i}"}) + "\n" for i in range(12))
    )
    assert run(folder, "filter", "--threshold", "0.000001") == 0
    said = capsys.readouterr().err
    assert said.startswith("mlx-spec: warning: filter: dropped 12 of 12; p(no) was 0.")
    assert said.endswith(" everywhere: the question does not separate them\n")
