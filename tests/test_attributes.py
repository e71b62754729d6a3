"""Modules find their submodules without Python's help, and compute what they computed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_spec.model.attributes import quicken
from mlx_spec.model.kernel_binding import OPERATIONS, _Bound, bind_operations
from mlx_spec.model.runner import ModelRunner, Rows
from tests.models import FAMILIES, make_model

REFERENCES = {name: operation.reference for name, operation in OPERATIONS.items()}
TOKENS = mx.array([[1, 2, 3], [4, 5, 6]], mx.int32)


def classes(model: Any) -> list[type]:
    return [type(module) for _, module in model.named_modules()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_asks_python_for_no_submodule(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(family)
    expected = model(TOKENS)
    runner = ModelRunner(model, 2)
    runner.pool.acquire(2)
    runner.pool.reserve(8)
    asked: list[tuple[Any, str]] = []
    found = nn.Module.__getattr__

    def note(self: nn.Module, key: str) -> Any:
        if isinstance(self.get(key), (dict, list)):
            asked.append((type(self), key))
        return found(self, key)

    monkeypatch.setattr(nn.Module, "__getattr__", note)
    logits = runner.forward(Rows(TOKENS, mx.zeros((2,), mx.int32), 3, uniform=True))
    assert asked == []
    assert mx.array_equal(logits, expected)


def test_a_submodule_that_is_replaced_is_the_one_that_is_found() -> None:
    model = make_model("llama")
    quicken(model)
    layer = model.model.layers[0]
    own, other = layer.mlp, make_model("llama", seed=1).model.layers[0].mlp
    before = model(TOKENS)
    layer.mlp = other
    assert layer.mlp is other
    assert not mx.array_equal(model(TOKENS), before)
    layer.update_modules({"mlp": own})
    assert layer.mlp is own
    assert mx.array_equal(model(TOKENS), before)


def test_twice_is_as_once_and_layers_of_a_kind_have_one_class() -> None:
    model = make_model("qwen3")
    own = classes(model)
    quicken(model)
    once = classes(model)
    quicken(model)
    assert classes(model) == once
    assert len(set(once)) == len(set(own))
    assert all(issubclass(new, old) for new, old in zip(once, own, strict=True))


@pytest.mark.parametrize("bound_first", [True, False])
def test_kernels_are_bound_and_unbound_all_the_same(bound_first: bool) -> None:
    model = make_model("qwen3")
    if not bound_first:
        quicken(model)
    before = classes(model)
    with bind_operations(model, REFERENCES) as binding:
        assert binding.bound
        quicken(model)
        logits = model(TOKENS)
    assert all(issubclass(new, old) for new, old in zip(classes(model), before, strict=True))
    assert not any(issubclass(cls, _Bound) for cls in classes(model))
    assert mx.allclose(model(TOKENS), logits, atol=1e-5)


def test_a_submodule_may_go_or_give_way_to_what_is_no_module() -> None:
    model = make_model("llama")
    quicken(model)
    layer, other = model.model.layers[:2]
    layer.mlp = lambda x: 0 * x
    assert layer.mlp(1) == 0
    assert "mlp" not in layer
    del other.mlp
    assert not hasattr(other, "mlp")
    with pytest.raises(AttributeError, match="mlp"):
        other.mlp  # noqa: B018
    assert isinstance(layer.self_attn, nn.Module)
    assert isinstance(other.self_attn, nn.Module)
