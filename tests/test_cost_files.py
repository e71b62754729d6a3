"""Timed passes on disk: kept, found again, and left aside where they are something else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.model import cost_files
from mlx_spec.model.cost_files import costs_file, keep_costs, kept_costs, model_lines
from tests.models import make_model

LINES = ("a model", "part", "device")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cost_files.VARIABLE, str(tmp_path / "costs"))
    return tmp_path / "costs"


def table(points: dict[int, float], key: float = 0.0) -> PassCosts:
    costs = PassCosts()
    costs.put(points, key=key)
    return costs


def test_what_is_kept_is_found_again() -> None:
    assert kept_costs(LINES) is None
    assert keep_costs(LINES, table({1: 0.1, 8: 0.2}, key=1e-6))
    assert costs_file(LINES).exists()
    kept = kept_costs(LINES)
    assert kept is not None
    assert kept.points == {1: {1: 0.1, 8: 0.2}}
    assert kept.key == 1e-6
    assert kept_costs(("another", "part", "device")) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"machine": 1}', "\udcff", "[" * 100_000], ids=range(7)
)
def test_what_is_no_table_is_left_aside_with_a_note(text: str) -> None:
    path = costs_file(LINES)
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.warns(RuntimeWarning, match="timed anew"):
        assert kept_costs(LINES) is None
    keep_costs(LINES, table({1: 0.1, 8: 0.2}))
    assert kept_costs(LINES) is not None


def test_a_table_of_another_model_is_left_aside() -> None:
    others = ("another model", "part", "device")
    assert keep_costs(others, table({1: 0.1, 8: 0.2}))
    costs_file(others).rename(costs_file(LINES))
    with pytest.warns(RuntimeWarning, match="something else"):
        assert kept_costs(LINES) is None


def test_where_nothing_can_be_written(folder: Path) -> None:
    folder.write_text("a file, and no folder")
    assert not keep_costs(LINES, table({1: 0.1, 8: 0.2}))
    with pytest.warns(RuntimeWarning, match="timed anew"):
        assert kept_costs(LINES) is None


def test_what_others_have_timed_meanwhile_stays() -> None:
    keep_costs(LINES, table({1: 0.1, 8: 0.2}))
    mine = table({1: 0.1, 16: 0.3})
    keep_costs(LINES, mine)
    kept = kept_costs(LINES)
    assert kept is not None
    assert kept.points == mine.points == {1: {1: 0.1, 8: 0.2, 16: 0.3}}


def _write(seed: int) -> None:
    for _ in range(10):
        keep_costs(LINES, table({1: 0.1, 8: 0.2, 100 + seed: 0.3}))


def test_many_writers_leave_a_whole_file(folder: Path) -> None:
    writers = [threading.Thread(target=_write, args=(seed,)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    kept = kept_costs(LINES)
    assert kept is not None
    assert {1, 8} <= kept.points[1].keys()
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_lines_of_models() -> None:
    one, same = make_model(seed=1), make_model(seed=2)
    other = make_model(seed=1, num_hidden_layers=3)
    assert model_lines(one) == model_lines(same)  # another's weights cost the same
    assert model_lines(one) != model_lines(other)
    assert model_lines(one) != model_lines(one, part="layers (0,)")
    before = model_lines(one)
    nn.quantize(one, group_size=32, bits=4, class_predicate=lambda name, _: "embed" in name)
    assert model_lines(one) != before
    same.set_dtype(mx.float16)
    assert model_lines(same) != before


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cost_files.VARIABLE, " Off ")
    assert not cost_files.measuring()
    assert "off" not in os.fspath(cost_files.costs_folder()).lower().split(os.sep)
