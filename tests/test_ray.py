"""A stage over Ray, as far as it can be tested without it (``test_ray_nodes`` has the rest)."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline import (
    Align,
    Classify,
    Filter,
    GenerateText,
    Stage,
    StructureText,
    ray_cluster,
)
from mlx_spec.pipeline.ray_process import together
from mlx_spec.pipeline.ray_worker import SecondTry
from mlx_spec.results import GenerationResult, GenerationStats
from tests.ray_nodes import run, write_input


@pytest.mark.parametrize("address", ["", "head", "head:", "10.0.0.1", "in.jsonl", "ray://head:1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(InvalidRequest, match="--ray"):
        ray_cluster.check_address(address)


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_addresses(address: str) -> None:
    ray_cluster.check_address(address)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ray-workers", "2"], "--ray-workers 2"),
        (["--ray", "--ray-workers", "0"], "--ray-workers 0"),
        (["--ray", "--performance-log", "x"], "not with --ray"),
        (["--ray", "ray://head:10001"], "--ray auto"),
        (["--ray", "--shard", "tensor"], "choose"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    source = write_input(tmp_path / "in.jsonl", 9)
    assert run(source, tmp_path / "out.jsonl", *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_chain_is_over_ray_or_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_input(tmp_path / "in.jsonl", 9)
    config = tmp_path / "chain.toml"
    config.write_text(
        'input = "in.jsonl"\noutput = "out.jsonl"\n[[stage]]\nkind = "generate"\nshard = "tensor"'
    )
    assert main(["pipeline", "run", str(config), "--ray"]) == 2
    assert "choose" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write_input(tmp_path / "in.jsonl", 9)
    assert run(source, tmp_path / "out.jsonl", "--ray") == 2
    assert "pip install 'mlx-spec[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stage",
    [
        GenerateText(prompt_template="{{ text }}"),
        Filter(question="{{ text }}?"),
        StructureText(),
        Classify(labels=("a", "b")),
        Align(policy="no"),
    ],
    ids=lambda stage: stage.kind,
)
def test_stages_travel_after_they_were_used(stage: Stage) -> None:
    """With templates compiled, which cannot."""
    fields = {"text": "x"}
    asked = stage.prepare(fields)
    again = pickle.loads(pickle.dumps(stage))
    assert again == stage
    assert again.prepare(fields) == asked


class _Once:
    """A backend whose first answer to each seed is an error."""

    def __init__(self, always: bool = False) -> None:
        self.seeds: list[int] = []
        self._always = always

    def submit(self, request: Any, seed: int) -> _Now:
        self.seeds.append(seed)
        return _Now("NaN" if self._always or self.seeds.count(seed) == 1 else None)

    def stats(self) -> GenerationStats:
        return GenerationStats()


class _Now:
    done = True

    def __init__(self, error: str | None) -> None:
        self._error = error

    def result(self, timeout: float | None = None) -> GenerationResult:
        reason: Any = "error" if self._error else "stop"
        return GenerationResult("x", [1], reason, 1, 1, 0.0, 0.0, error=self._error)


@pytest.mark.parametrize("look", [False, True])
def test_a_failed_record_is_asked_once_more(look: bool) -> None:
    for always in (False, True):
        backend = _Once(always)
        pending = SecondTry(backend).submit("prompt", 5)
        if look:
            assert pending.done
        answer = pending.result()
        assert isinstance(answer, GenerationResult)
        assert (answer.error is not None) == always
        assert backend.seeds == [5, 5]


def test_figures_of_workers_side_by_side() -> None:
    one = GenerationStats(generation_tokens=10, generation_time=2.0, draft_lengths={1: 3})
    two = GenerationStats(generation_tokens=30, generation_time=3.0, draft_lengths={1: 1, 2: 4})
    both = together({"a": one, "b": two})
    assert (both.generation_tokens, both.generation_time) == (40, 3.0)
    assert both.draft_lengths == {1: 4, 2: 4}
    assert together({}) == GenerationStats()
