"""Whatever a model raises while a pass is described, slots, drafter and lengths stay as they were.

A trap in one layer raises now and then, so that the layers before it have written to their caches
already. Whoever steps on finds everything as it was, and all rows get the right tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.rules import LogitsRule, RuleContext
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.model.passes.row_by_row import RowByRow
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.caches import filled, rows_of
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import PROMPTS, SYSTEM
from tests.scenario import mlx_lm_greedy


class Planted(Exception):
    """What the trap raises."""


def trap(module: Any, raises: Callable[[], bool]) -> None:
    """Let a module raise instead of answering, where ``raises`` says so."""
    own = type(module)

    def call(self: Any, *args: Any, **options: Any) -> Any:
        if raises():
            raise Planted
        return own.__call__(self, *args, **options)

    module.__class__ = type(own.__name__, (own,), {"__call__": call})


def now_and_then(seed: int, share: float = 0.15) -> Callable[[], bool]:
    chance = random.Random(seed)
    return lambda: chance.random() < share


class Grumpy(LogitsRule):
    """Changes nothing, and raises now and then: once the draft is shown, or before."""

    needs_host = True

    def __init__(self, raises: Callable[[], bool] = lambda: False) -> None:
        self._raises = raises

    def see(self, rows: Any, guesses: Any) -> None:
        self._raise()

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        self._raise()
        return logits

    def _raise(self) -> None:
        if self._raises():
            raise Planted


def make_decoder(name: str = "llama", **options: Any) -> SpeculativeDecoder:
    """Fresh models: traps stay in them."""
    make = make_model if name == "llama" else build
    return SpeculativeDecoder(
        make(name),
        drafter=ModelDrafter(ModelRunner(make(name), 3)),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(
            batch_size=3, prefill_step_size=16, block_size=8, prefix_cache_bytes=2**20
        ),
        **options,
    )


def run_through_errors(decoder: SpeculativeDecoder) -> tuple[list[Sequence], int]:
    """Five requests in three slots, whatever is raised; and how often that was."""
    made = [
        Sequence([*SYSTEM * (i % 2), *prompt], SamplingParams(max_tokens=9 + 2 * i), index=i)
        for i, prompt in enumerate(PROMPTS)
    ]
    todo, raised = list(made), 0
    while todo or decoder.busy:
        if todo and decoder.free_rows:
            decoder.add([todo.pop(0)])
        try:
            decoder.step()
        except Planted:
            raised += 1
            assert raised < 500
    return made, raised


def wrong_rows(made: list[Sequence], name: str = "llama") -> list[int]:
    model = (make_model if name == "llama" else build)(name)
    return [
        row.index
        for row in made
        if row.tokens != mlx_lm_greedy(model, tuple(row.prompt), row.max_new_tokens)
    ]


@pytest.mark.parametrize("name", ["llama", "gpt_bigcode"])
@pytest.mark.parametrize("role", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_raises_spoils_no_row(name: str, role: int, layer: int) -> None:
    decoder = make_decoder(name)
    model = decoder.runners[role].model
    blocks = model.layers if name == "llama" else model.transformer.h
    trap(blocks[layer], now_and_then(10 * role + layer + 5, 0.3))
    made, raised = run_through_errors(decoder)
    assert raised > 5
    assert wrong_rows(made, name) == []
    assert sum(row.accepted for row in made) > 0


def test_a_rule_that_raises_spoils_no_row() -> None:
    """Also where the pass that it judges is on its way already."""
    decoder = make_decoder(rules=(Grumpy(now_and_then(3, 0.3)),))
    made, raised = run_through_errors(decoder)
    assert raised > 5
    assert wrong_rows(made) == []


@pytest.mark.parametrize("broken", ["restore", "forward"])
def test_without_the_transaction_rows_are_wrong(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lags and lengths of a step that was not taken, or prompts that were never read."""
    if broken == "restore":
        monkeypatch.setattr(Stepper, "restore", lambda self, snapshot: None)
    else:
        from mlx_spec.decoding.feeding import Feeder

        given = Feeder._read

        def noted_before(self: Any, part: Any, slots: Any) -> Rows:
            rows = given(self, part, slots)
            self._note(part, rows, slots, mx.zeros(0))
            return rows

        monkeypatch.setattr(Feeder, "_read", noted_before)
    decoder = make_decoder()
    trap(decoder.runner.model.layers[1], now_and_then(1, 0.3))
    made, _ = run_through_errors(decoder)
    assert wrong_rows(made) or not sum(row.accepted for row in made)


@pytest.mark.parametrize("name", ["llama", "gpt_bigcode"])
@pytest.mark.parametrize("layer", [0, 1])
def test_every_layer_holds_what_it_held(name: str, layer: int) -> None:
    """By reference: nothing was copied to be sure of it."""
    runner = ModelRunner((make_model if name == "llama" else build)(name), 3)
    runner.pool.acquire(3)
    runner.pool.reserve(12)
    first = Rows(mx.ones((3, 4), mx.int32), mx.zeros(3, mx.int32), 4, uniform=True)
    runner.forward(first)
    held = [array for kept in runner.pool.layers for array in kept.arrays]
    model = runner.model
    calls = iter([False] * (2 if isinstance(runner._pass, RowByRow) else 0) + [True])
    trap((model.layers if name == "llama" else model.transformer.h)[layer], lambda: next(calls))
    with pytest.raises(Planted):
        runner.forward(Rows(mx.ones((3, 2), mx.int32), mx.full(3, 4, mx.int32), 6, uniform=True))
    assert next(calls, None) is None
    now = [array for kept in runner.pool.layers for array in kept.arrays]
    assert len(now) == len(held) == 4
    assert all(a is b for a, b in zip(now, held, strict=True))


def test_slots_grow_in_all_layers_or_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third layer finds no memory."""
    lengths = [3, 5, 2]
    pool = filled(8, lengths, layers=4)
    held, sizes = rows_of(pool, lengths), (pool.slots, pool.positions, pool.used)
    right = DenseKVCache.resize

    def resize(self: DenseKVCache, slots: int, positions: int) -> None:
        if self is pool.layers[2]:
            raise MemoryError
        right(self, slots, positions)

    monkeypatch.setattr(DenseKVCache, "resize", resize)
    for grow in (lambda: pool.reserve(1000), lambda: pool.acquire(4)):
        with pytest.raises(MemoryError):
            grow()
        assert (pool.slots, pool.positions, pool.used) == sizes
        assert {(layer.slots, layer.positions) for layer in pool.layers} == {sizes[:2]}
        assert {array.shape[:3:2] for array in pool.arrays} == {sizes[:2]}
        for ours, theirs in zip(rows_of(pool, lengths), held, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
