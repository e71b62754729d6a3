"""``mlx-spec pipeline run`` as a process: ``kill -9`` and Ctrl-C at any moment, in any stage."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_spec.cli.main import main
from tests.folders import CONTEXT, write_folder
from tests.waiting import PATIENCE

RECORDS = 300
STAGES = ("1-filter", "2-classify", "3-generate", "4-align")
# Tiny random models: what counts here is when a process dies, not what it says.
CHAIN = """
input = "in.jsonl"
output = "out.jsonl"
[options]
model = "./model"
draft_model = "./model"
batch_size = 8
max_tokens = 8
[[stage]]
kind = "filter"
min_chars = 5
question = "Code?"
threshold = 1
[[stage]]
kind = "classify"
labels = ["code", "soup"]
[[stage]]
kind = "generate"
temp = 0.9
seed = 3
[[stage]]
kind = "align"
policy = "no soup"
"""


def write_chain(folder: Path) -> Path:
    """A chain over records, two of them bad; returns its config."""
    model = write_folder(folder / "model") / "config.json"
    model.write_text(model.read_text().replace(f": {CONTEXT}", ": 2048"))
    lines = [json.dumps({"text": f"def read_{i}(path):", "id": i}) for i in range(RECORDS)]
    lines[2] = '{"text": "hi"}'
    lines[5] = "broken"
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    config = folder / "config.toml"
    config.write_text(CHAIN)
    return config


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlx_spec", "pipeline", "run", str(config), "--resume"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_done(folder: Path) -> int:
    """Whole lines in the outputs of all stages."""
    outputs = (folder / "out.jsonl.stages").glob("*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in outputs)


def wait_for_lines(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until so many lines are there, or the process has ended."""
    while process.poll() is None and lines_done(folder) < count:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["pipeline", "run", str(write_chain(folder)), "-q"]) == 1
    return folder


def test_kill_9_at_random_moments_then_resume_is_an_undisturbed_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Five kills, spread over the four stages; every file is the same to the byte."""
    config, rng = write_chain(tmp_path), random.Random(4)
    most = lines_done(undisturbed)
    kills = 0
    for share in (0.0, 0.2, 0.4, 0.6, 0.75):
        process = start(config)
        wait_for_lines(process, tmp_path, int(share * most) + rng.randint(1, most // 8))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out.jsonl").exists()
    assert kills == 5
    assert main(["pipeline", "run", str(config), "-q", "--resume"]) == 1
    assert_equal_runs(tmp_path, undisturbed)


def assert_equal_runs(folder: Path, other: Path) -> None:
    """The same output and the same outputs of all stages, to the byte."""
    names = ["out.jsonl", *(f"out.jsonl.stages/{stage}.jsonl" for stage in STAGES)]
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    "share", [0.1, 0.35, 0.55, 0.8], ids=["filter", "classify", "generate", "align"]
)
def test_ctrl_c_in_any_stage_says_how_to_go_on(
    share: float, undisturbed: Path, tmp_path: Path
) -> None:
    config, most = write_chain(tmp_path), lines_done(undisturbed)
    process = start(config)
    wait_for_lines(process, tmp_path, int(share * most))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"go on with --resume: {tmp_path / 'out.jsonl.stages'} keeps what is done" in errors
    assert not (tmp_path / "out.jsonl").exists()
    for path in (tmp_path / "out.jsonl.stages").glob("*.jsonl"):
        assert path.read_bytes().endswith(b"\n")  # nothing half-written
    assert main(["pipeline", "run", str(config), "-q", "--resume"]) == 1
    assert_equal_runs(tmp_path, undisturbed)
