"""The verdict on a model is traced once, and again when the model has changed."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from metal_kernels import rms_norm
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model import known_support
from mlx_spec.model.kernel_binding import bind_operations
from mlx_spec.model.known_support import require, support_of
from tests.models import make_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that were examined, in order."""
    models: list[Any] = []
    examine = known_support.examine

    def noted(model: Any, *options: Any) -> Any:
        models.append(model)
        return examine(model, *options)

    monkeypatch.setattr(known_support, "examine", noted)
    return models


def test_a_second_decoder_of_a_model_traces_nothing(asked: list[Any]) -> None:
    """Stops tens of milliseconds at every call of ``generate`` in a notebook."""
    model, draft = make_model("llama"), make_model("llama", seed=1)
    for _ in range(3):
        SpeculativeDecoder(model, draft_model=draft)
    assert [id(one) for one in asked] == [id(model), id(draft)]


def cast(model: Any) -> None:
    model.set_dtype(mx.float16)


def widen(model: Any) -> None:
    weight = model.lm_head.weight
    model.lm_head.weight = mx.concatenate([weight, weight[:8]])


def quantize(model: Any) -> None:
    nn.quantize(model, group_size=32, bits=4)


def bind(model: Any) -> None:
    bind_operations(model, {"rms_norm": rms_norm.reference})


def number(model: Any) -> None:
    model.layers[0].self_attn.n_heads = 3


@pytest.mark.parametrize("change", [cast, widen, quantize, bind, number])
def test_a_changed_model_is_examined_anew(change: Any, asked: list[Any]) -> None:
    model = make_model("llama", hidden_size=64, intermediate_size=64)
    before = support_of(model)
    assert support_of(model) is before
    change(model)
    after = support_of(model)
    assert support_of(model) is after
    assert len(asked) == 2
    if change is widen:
        assert after.vocabulary == before.vocabulary + 8


def test_a_freed_model_leaves_nothing_behind() -> None:
    """Stops the verdict of a dead model for one that took its place in memory."""
    gc.collect()
    known = len(known_support._KNOWN)
    model = make_model("llama")
    support_of(model)
    assert len(known_support._KNOWN) == known + 1
    del model
    gc.collect()
    assert len(known_support._KNOWN) == known


class Flat(nn.Module):
    """Its logits are of the last tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model("llama")
        self.layers = self.inner.layers

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        logits: mx.array = self.inner(tokens, cache=cache)
        return logits[:, -1]


def test_a_refused_model_is_refused_again(asked: list[Any]) -> None:
    model = Flat()
    for _ in range(2):
        with pytest.raises(UnsupportedModel, match=r"\[ModelRunner\] mlx-lm's code"):
            require(model)
    assert len(asked) == 1
