"""Hidden states of a pass: those of its rows and positions, in every form that a pass may take."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_spec.errors import UnsupportedModel
from mlx_spec.model import runner as runners
from mlx_spec.model.hidden import HiddenLayers, bind_hidden, noting, unbind_hidden
from mlx_spec.model.passes.form import PassForm
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.runner import ModelRunner, Rows
from tests.architectures import build
from tests.models import make_model

STARTS, WIDTH = (6, 0, 4), 3
FORMS = {
    "llama": PassForm(),
    "gpt_bigcode": PassForm(rows_apart=True),
    "deepseek_v3": PassForm(tokens_as_rows=True),
    "kimi_linear": PassForm(tokens_as_rows=True),
    "qwen2": PassForm(tokens_apart=True),
    "qwen3": PassForm(beginners_apart=True),
}


@cache
def model(name: str) -> Any:
    return make_model(name) if name in ("llama", "qwen2", "qwen3") else build(name)


def text(row: int) -> list[int]:
    return [(5 * row + 3 * i + i * i) % 64 for i in range(10)]


def ragged_pass(name: str, wanted: HiddenLayers, patch: pytest.MonkeyPatch) -> ModelRunner:
    """Rows at positions of their own, behind another row's slot, in the form of that name."""

    def make(form: PassForm, *args: Any, **options: Any) -> Any:
        return make_pass(FORMS[name] if name in ("qwen2", "qwen3") else form, *args, **options)

    patch.setattr(runners, "make_pass", make)
    runner = ModelRunner(model(name), 4)
    assert name in ("qwen2", "qwen3") or runner.support.form == FORMS[name]
    runner.tap(wanted)
    runner.pool.acquire(4)
    runner.pool.reserve(16)
    for row, start in enumerate(STARTS):
        if start:
            fed = Rows(mx.array([text(row)[:start]]), mx.zeros(1, mx.int32), start, row + 1, True)
            runner.feed(fed, 64, wait=True)
    new = mx.array([text(row)[start : start + WIDTH] for row, start in enumerate(STARTS)])
    runner.forward(
        Rows(
            new,
            mx.array(STARTS, mx.int32),
            max(STARTS) + WIDTH,
            first=1,
            at=STARTS,
            tentative=True,
            begins=(False, True, False),
        )
    )
    return runner


@pytest.mark.parametrize("name", FORMS)
def test_they_are_what_the_model_has_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trunk's own output, without any of our code between."""
    runner = ragged_pass(name, HiddenLayers(), monkeypatch)
    assert runner.hidden is not None
    assert runner.hidden.shape[:2] == (3, WIDTH)
    one = model(name)
    trunk = getattr(one, "model", None) or one.transformer
    for row, start in enumerate(STARTS):
        tokens = mx.array([text(row)[: start + WIDTH]])
        lone = trunk(tokens, cache=make_prompt_cache(one))[0, start:]
        assert mx.allclose(lone, runner.hidden[row], atol=1e-4), row


def test_layers_come_before_what_the_head_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = ragged_pass("llama", HiddenLayers(layers=(0, 1)), monkeypatch)
    one = model("llama")
    tokens = mx.array([text(1)[:WIDTH]])
    state, seen = one.model.embed_tokens(tokens), []
    for layer in one.model.layers:
        state = layer(state, "causal")
        seen.append(state)
    expected = mx.concatenate([*seen, one.model.norm(state)], axis=-1)[0]
    assert runner.hidden is not None
    assert mx.allclose(expected, runner.hidden[1], atol=1e-4)


def test_whoever_did_not_ask_gets_none_and_a_model_can_be_as_it_was() -> None:
    one = make_model("llama", tie_word_embeddings=True)
    classes = [type(module) for _, module in one.named_modules()]
    tokens = mx.array([[3, 1, 4]])
    before = one(tokens)
    bind_hidden(one, HiddenLayers(layers=(0,)))
    with noting(HiddenLayers()) as notes:
        assert mx.array_equal(one(tokens), before)
    assert mx.array_equal(notes.take(), one.model(tokens))  # an embedding that is the head too
    bind_hidden(one, HiddenLayers())
    unbind_hidden(one)
    assert [type(module) for _, module in one.named_modules()] == classes
    plain = ModelRunner(one, 1)
    plain.pool.acquire(1)
    plain.pool.reserve(4)
    plain.forward(Rows(tokens, mx.zeros(1, mx.int32), 3, uniform=True))
    assert plain.hidden is None


def test_what_a_model_has_not_is_said() -> None:
    with pytest.raises(UnsupportedModel, match=r"layer 7 asked of a 'llama' model of 2"):
        bind_hidden(model("llama"), HiddenLayers(layers=(7,)))
    one = make_model("llama")
    runner = ModelRunner(one, 1)
    runner.tap(HiddenLayers())
    runner.pool.acquire(1)
    runner.pool.reserve(4)
    unbind_hidden(one)
    with pytest.raises(UnsupportedModel, match="nothing was seen of the head"):
        runner.forward(Rows(mx.array([[3]]), mx.zeros(1, mx.int32), 1, uniform=True))
