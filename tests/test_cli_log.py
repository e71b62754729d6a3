"""``--performance-log`` of every command that runs a model, read back by ``mlx-spec report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_spec.cli.main import main
from mlx_spec.metrics.log_reader import RunLog, read_logs
from tests.folders import write_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten records, one of them broken."""
    lines = [json.dumps({"text": f"def f{i}("}) for i in range(10)]
    lines[3] = "broken"
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "in.jsonl"


def log_of(folder: Path) -> RunLog:
    (run,), problems = read_logs(folder)
    assert problems == []
    assert run.end is not None
    return run


def test_batch_writes_requests_steps_and_its_stage(source: Path, tmp_path: Path) -> None:
    logs, out = tmp_path / "logs", tmp_path / "out.jsonl"
    model = str(write_folder(tmp_path / "model"))
    options = ["-m", "5", "--model", model, "--draft-model", model, "-q"]
    command = ["batch", str(source), str(out), *options, "--performance-log", str(logs)]
    assert main(command) == 1
    run = log_of(logs)
    assert len(run.requests) == 9
    assert sum(line["tokens"] for line in run.inference) == 45
    assert run.header["notes"] == {"target": model, "draft": model}
    (stage,) = run.stages
    assert (stage["stage"], stage["items"], stage["errors"]) == ("generate", 10, 1)
    assert main(["report", str(logs), "--out", str(tmp_path / "report")]) == 0
    # Nothing was left to do, and nothing is said about it.
    assert main([*command, "--resume"]) == 1
    assert len(list(logs.iterdir())) == 1


def test_a_pipeline_writes_all_its_stages(source: Path, tmp_path: Path) -> None:
    model = write_folder(tmp_path / "model")
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
input = "{source.name}"
output = "out.jsonl"
[options]
model = "./{model.name}"
max_tokens = 4
[[stage]]
kind = "classify"
labels = ["a", "b"]
prompt_template = "{{{{ text }}}}"
[[stage]]
kind = "generate"
"""
    )
    logs = tmp_path / "logs"
    assert main(["pipeline", "run", str(config), "-q", "--performance-log", str(logs)]) == 1
    run = log_of(logs)
    assert [line["stage"] for line in run.stages] == ["classify", "generate"]
    assert [line["items"] for line in run.stages] == [10, 10]
    assert len(run.requests) == 9
