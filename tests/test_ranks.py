"""One model held by several processes: the same tokens as by one, drafted for, rows coming and
going; and an end with a word where a process dies.

Who decides what, and when, is tested in one process (``test_leading``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import batch_generate, load
from mlx_spec.errors import InvalidRequest, UnsupportedModel
from mlx_spec.model import sharding
from tests import rank_program
from tests.folders import write_folder
from tests.ranks import LONGEST, free_ports, launch

OPTIONS = {"speculation": {"adaptive": False, "num_draft_tokens": 4}}
PROMPT = "def read_file(path):\n    "


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a run: a model with these changes of config, and a draft that often agrees."""
    sizes = {"max_position_embeddings": 2048, **request.param}
    target = write_folder(tmp_path / "target", **sizes)
    draft = disturbed(write_folder(tmp_path / "draft", **sizes))
    return {**OPTIONS, "model": str(target), "draft": str(draft)}


def several(count: int, options: dict[str, Any]) -> dict[str, Any]:
    """What rank 0 of so many says; the others say nothing."""
    first, *others = launch(count, "-m", "tests.rank_program", json.dumps(options)).wait()
    assert first[0] == 0, first[2]
    assert [(code, out, err) for code, out, err in others] == [(0, "", "")] * (count - 1)
    said: dict[str, Any] = json.loads(first[1])
    return said


def check_alike(options: dict[str, Any], many: dict[str, Any]) -> None:
    one = rank_program.run({**options, "shard": None})
    for name in ("reasons", "again", "either"):
        assert many[name] == one[name]
    assert many["reasons"] == ["length", "length", "cancelled", "length", "length"]
    for place, (lone, own) in enumerate(zip(one["tokens"], many["tokens"], strict=True)):
        if place == 2:  # whoever was cancelled has said as much as there was time for
            lone, own = (row[: min(len(lone), len(own))] for row in (lone, own))
        assert own == lone
    assert many["drafted"] > many["accepted"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("pair", [{}], indirect=True)
def test_tensor_parallel_says_what_one_process_says(pair: dict[str, Any]) -> None:
    check_alike(pair, several(2, {**pair, "shard": "tensor"}))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [{"family": "qwen2", "num_hidden_layers": 4}], indirect=True)
def test_a_pipeline_says_what_one_process_says(pair: dict[str, Any]) -> None:
    """Of a class that mlx-lm can divide so; of four layers, which three ranks share unequally."""
    check_alike(pair, several(3, {**pair, "shard": "pipeline"}))


def disturbed(folder: Path) -> Path:
    """The folder of a model that says what it said often, not always."""
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.random.seed(5)
    for name, value in weights.items():
        weights[name] = value + 0.15 * mx.random.normal(value.shape) * mx.abs(value).mean()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("pair", [{}], indirect=True)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(victim: int, pair: dict[str, Any]) -> None:
    options = {**pair, "shard": "tensor", "forever": True}
    launched = launch(2, "-m", "tests.rank_program", json.dumps(options))
    first = launched.processes[0].stdout
    assert first is not None
    assert first.readline() == "running\n", launched.wait()
    launched.processes[victim].kill()
    code, _, errors = launched.wait()[1 - victim]
    assert code == 1, errors
    assert f"rank {victim} of 2 is gone" in errors


@pytest.mark.slow
def test_the_command_under_mlx_s_launcher() -> None:
    """With nothing said of drafts but which model: they are as long as pays."""
    program = Path(sys.executable).parent
    command = [program / "mlx.launch", "-n", "2", "--starting-port", str(free_ports(1)[0]), "--"]
    command += [program / "mlx-spec", "generate", "--model", "demo", "--draft-model", "demo-draft"]
    command += ["--shard", "tensor", "-p", PROMPT, "-p", "class Stack", "-m", "10", "--json"]
    shown = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST,
    )
    assert shown.returncode == 0, shown.stderr
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    plain = batch_generate(*load("demo"), [PROMPT, "class Stack"], max_tokens=10)
    assert [record["token_ids"] for record in records] == [row.token_ids for row in plain.results]
    assert shown.stderr.count("mlx-spec:") == 0, shown.stderr


class TwoProcesses:
    """MLX's group of two, of which this is the second."""

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return 1


def test_one_process_alone_holds_no_part() -> None:
    with pytest.raises(InvalidRequest, match=r"one process alone; start several: mlx\.launch -n 2"):
        load("demo", shard="tensor")


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("pipeline", {}, "has no pipeline"),
        ("tensor", {"family": "starcoder2", "norm_epsilon": 1e-5}, "cannot divide its matrices"),
        ("tensor", {"num_attention_heads": 4, "num_key_value_heads": 1}, "1 heads"),
        ("pipeline", {"family": "qwen2", "num_hidden_layers": 1}, "1 layers cannot be divided"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_words(
    kind: str,
    changes: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharding, "_met", lambda _: (TwoProcesses(), None, None))
    with pytest.raises(UnsupportedModel, match=words):
        load(write_folder(tmp_path / "model", **changes), shard=kind)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(InvalidRequest, match="expected one of tensor, pipeline"):
        load("demo", shard="both")
    with pytest.raises(InvalidRequest, match="leave kernels='metal' out"):
        load("demo", shard="tensor", kernels="metal")
