"""Nothing that a model holds is left to be computed by a thread that cannot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_spec.model.loader import load
from mlx_spec.model.materialize import held_arrays, materialize
from tests.folders import write_folder
from tests.models import make_model
from tests.waiting import PATIENCE

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def in_thread(action: Any) -> Any:
    """The action's result in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result(PATIENCE)


class Odd(nn.Module):
    """Arrays in every place that a module may keep one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.arange(3) + 0
        self._private = mx.arange(3) + 1
        self.listed = [{"x": (mx.arange(3) + 2,)}]
        self.plain = SimpleNamespace(table=mx.arange(3) + 3)
        self.me = SimpleNamespace(back=self.plain, of=type(self))


def test_every_place_is_found_once_and_computed() -> None:
    model = Odd()
    assert sorted(int(array[0]) for array in held_arrays(model)) == [0, 1, 2, 3]
    model = Odd()
    materialize(model)
    assert [in_thread(array.tolist) for array in held_arrays(model)]


@pytest.mark.parametrize("group", [1, 13, 10**6])
def test_with_a_bar_every_array_is_computed_too(
    group: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlx_spec.model.materialize._GROUP", group)
    monkeypatch.setattr("mlx_spec.model.materialize._PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model = Odd()
    materialize(model, title="loading odd")
    assert [in_thread(array.tolist) for array in held_arrays(model)]
    assert ("loading odd:" in capsys.readouterr().err) is (group < 48)


def test_parameters_can_be_left() -> None:
    model = Odd()
    materialize(model, parameters=False)
    parameters = {id(array) for _, array in tree_flatten(model.parameters())}
    for array in held_arrays(model):
        if id(array) not in parameters:
            assert len(in_thread(array.tolist)) == 3
    with pytest.raises(RuntimeError, match="Stream"):
        in_thread(model.weight.tolist)


@pytest.mark.parametrize("scaling", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_a_model_with_scaled_rotation_runs_in_another_thread(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    """Its frequencies are no parameters: ``mx.eval(model.parameters())`` passes them by."""
    folder = write_folder(tmp_path / "model", rope_scaling=scaling)
    model, _ = load(folder)
    here = model(mx.array([[1, 2, 3]])).tolist()
    model, _ = load(folder)
    assert in_thread(lambda: model(mx.array([[1, 2, 3]])).tolist()) == here
    model, _ = in_thread(lambda: load(folder))
    assert model(mx.array([[1, 2, 3]])).tolist() == here


def test_a_model_built_by_hand_runs_in_another_thread_once_computed() -> None:
    model = make_model("llama", rope_scaling=LLAMA3)
    materialize(model)
    assert in_thread(lambda: model(mx.array([[1, 2, 3]])).tolist())
