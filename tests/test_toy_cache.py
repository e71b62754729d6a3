"""A stranger's cache in a file of its own: as exact as the others, without a line elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_spec
from mlx_spec.cache.cost import RowCost
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.errors import InvariantError
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import run_with_a_preemption
from tests.scenario import mlx_lm_greedy
from tests.toys import every_second
from tests.toys.every_second import EverySecondLlama, EverySecondSlots


@cache
def sparse(layers: int = 2) -> Any:
    """A llama over such caches; with one layer a draft that is right now and then."""
    dense = make_model("llama", num_hidden_layers=layers)
    model = EverySecondLlama(dense.args)
    model.update(dense.parameters())
    mx.eval(model.parameters())
    return model


def make_decoder(debug: bool = False) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        sparse(),
        drafter=ModelDrafter(ModelRunner(sparse(1), 3)),
        policy=RaggedPolicy(),
        batching=BatchingConfig(
            batch_size=3, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        debug=debug,
    )


def wrong_rows(debug: bool = False) -> int:
    """Rows that differ from what the model says over its own caches, by mlx-lm's loop."""
    made = run_with_a_preemption(make_decoder(debug))
    return sum(
        row.tokens != mlx_lm_greedy(sparse(), tuple(row.prompt), len(row.tokens)) for row in made
    )


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_rows_over_a_toy_cache_equal_the_model_alone(debug: bool) -> None:
    assert wrong_rows(debug) == 0


@pytest.mark.parametrize("name", ["load", "save"])
def test_a_toy_that_saves_or_loads_elsewhere_is_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(EverySecondSlots, name)

    def shifted(self: EverySecondSlots, slot: int, begin: int, rest: Any) -> Any:
        return right(self, slot, begin + 2, rest)

    monkeypatch.setattr(EverySecondSlots, name, shifted)
    assert wrong_rows() > 0


def test_debug_mode_sees_a_spoilt_toy() -> None:
    """It asks the layers themselves and knows no kind."""
    decoder = make_decoder(debug=True)
    decoder.add([Sequence([1 + i, 2, 3, 4], SamplingParams(max_tokens=20)) for i in range(3)])
    decoder.step()
    layer = decoder.runner.pool.layers[1]
    keys, values = layer.arrays
    layer.arrays = [keys, values.at[2, :, 1].add(0.1)]
    with pytest.raises(InvariantError, match=r"array 1 of layer 1, slot 2"):
        decoder.step()


def test_its_bytes_are_what_it_says() -> None:
    runner = ModelRunner(sparse(), 4)
    entry = 2 * 2 * 2 * 8 * 4
    assert runner.cost == RowCost(fixed=entry, per_token=entry // 2)
    dense = ModelRunner(make_model("llama"), 4)
    assert dense.cost == RowCost(per_token=entry)


def test_a_kind_of_cache_is_one_file() -> None:
    """Nothing of ours knows it."""
    root = Path(mlx_spec.__file__).parent
    source = Path(every_second.__file__).read_text(encoding="utf-8")
    assert "EverySecond" in source
    for path in root.rglob("*.py"):
        assert "every_second" not in path.read_text(encoding="utf-8").lower(), path
        assert "EverySecond" not in path.read_text(encoding="utf-8"), path
