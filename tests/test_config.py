"""Option objects refuse what cannot be served, where it is written."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import InvalidRequest, MlxSpecError

NAN, INF = math.nan, math.inf

REFUSED: list[tuple[type, str, list[Any]]] = [
    (SamplingParams, "max_tokens", [0, -2, 1.0, True, "9"]),
    (SamplingParams, "temperature", [-0.1, NAN, INF, 101, "1", None, True]),
    (SamplingParams, "top_p", [0.0, -1, 1.01, NAN, None]),
    (SamplingParams, "top_k", [-1, 2.5, True, None]),
    (SamplingParams, "min_p", [-0.1, 1.1, NAN]),
    (SamplingParams, "seed", [-1, 1.5, "x", True]),
    (SamplingParams, "stop", [("",), "", (3,), ("ok", "")]),
    (SamplingParams, "stop_token_ids", [(-1,), (1.5,), (True,)]),
    (SpeculationConfig, "num_draft_tokens", [-1, 1.5, True, None]),
    (SpeculationConfig, "draft", ["", "oracle", "ngram+", "ngram+ngram", 3, ["ngram"]]),
    (SpeculationConfig, "acceptance", ["greedy", "", None]),
    (SpeculationConfig, "probe_interval", [0, -3]),
    (SpeculationConfig, "hysteresis", [-0.1, NAN, 2]),
    (BatchingConfig, "batch_size", [0, -1, 1.5, True]),
    (BatchingConfig, "batch_timeout", [-1, NAN, INF, "1"]),
    (BatchingConfig, "prefill_step_size", [0, -1, None]),
]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, field, value) for kind, field, values in REFUSED for value in values],
)
def test_values_out_of_range_are_refused_by_name(kind: type, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"\[{kind.__name__}\] {field}=") as caught:
        kind(**{field: value})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MlxSpecError)


def test_edges_are_allowed() -> None:
    SamplingParams(max_tokens=1, temperature=100, top_p=1, top_k=0, min_p=0, seed=0)
    SamplingParams(min_p=1, top_p=1e-9, seed=2**70)
    SpeculationConfig(num_draft_tokens=0, hysteresis=0)
    BatchingConfig(batch_size=1, batch_timeout=0, prefill_step_size=1)


def test_one_stop_text_may_be_a_plain_string() -> None:
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("kind", [SamplingParams, SpeculationConfig, BatchingConfig])
def test_options_are_frozen_and_equal_by_value(kind: type) -> None:
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().__setattr__(dataclasses.fields(kind)[0].name, 1)


def test_numpy_numbers_and_single_stops_are_taken() -> None:
    """Stops an error from what a notebook's data frame gives."""
    import numpy as np

    made = SamplingParams(max_tokens=np.int64(5), temperature=np.float32(0.5), stop=None)
    assert made.max_tokens == 5
    assert type(made.max_tokens) is int
    assert made.temperature == 0.5
    assert made.stop == ()
    assert SamplingParams(stop_token_ids=3).stop_token_ids == (3,)
    assert SamplingParams(stop_token_ids=None).stop_token_ids == ()
