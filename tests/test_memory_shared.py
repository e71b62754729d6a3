"""Memory that several engines of a process share: none promises what another one has promised."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import BatchedMLXGenerator, BatchingConfig, SamplingParams, stream_batch_generate
from mlx_spec.batching import memory
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.memory import LEDGER, STEP_COPIES, memory_room, model_bytes
from mlx_spec.config import SpeculationConfig
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.errors import CapacityError
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY, make_model
from tests.scenario import target
from tests.waiting import PATIENCE

OFF = SpeculationConfig(enabled=False, num_draft_tokens=0)
ROW = 64 * 256 + VOCABULARY * 4 * STEP_COPIES  # of 64 tokens: K/V of the tiny llama, and a step
LONG = SamplingParams(max_tokens=50)


@pytest.fixture(autouse=True)
def _alone() -> None:
    gc.collect()  # engines of other tests that nobody closed


def engine_of(rows: int) -> Engine:
    """One with room for so many rows of 64 tokens."""
    limit = mx.get_active_memory() - LEDGER.held() + rows * ROW
    return Engine(
        target("llama"),
        None,
        speculation=OFF,
        batching=BatchingConfig(batch_size=8, memory_limit=limit),
    )


def start(engine: Engine, count: int) -> None:
    for number in range(count):
        engine.submit(Sequence([1 + number, 2], LONG))
    engine.step(hurry=True)


def test_engines_do_not_promise_the_same_memory() -> None:
    """Stops two generators in one process from taking twice the limit between them."""
    target("llama")
    first = engine_of(4)
    start(first, 3)
    assert len(first.scheduler.running) == 3
    second = engine_of(4)
    assert second.memory.budget.kv.limit == pytest.approx(first.memory.budget.kv.limit, abs=2**14)
    start(second, 4)
    assert len(second.scheduler.running) == 1  # what is left, and what always runs
    while first.busy:
        first.step(hurry=True)
    second.step(hurry=True)
    assert len(second.scheduler.running) == 4
    while second.busy:
        second.step(hurry=True)


def test_one_request_of_every_engine_always_runs() -> None:
    """Stops an engine from waiting for ever for one that nobody steps."""
    first, second = engine_of(3), engine_of(3)
    start(first, 3)
    start(second, 3)
    assert (len(first.scheduler.running), len(second.scheduler.running)) == (3, 1)
    while second.busy:
        second.step(hurry=True)
    assert first.busy


def test_an_engine_that_is_gone_promises_nothing() -> None:
    first, second = engine_of(3), engine_of(3)
    start(first, 3)
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    start(second, 3)
    assert len(second.scheduler.running) == 3


def test_models_that_are_not_computed_yet_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a lazily loaded model from counting as nothing, and one array from counting twice."""
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)  # whatever other tests have left
    weights = mx.zeros((1024, 1024)) + 1  # 4 MiB, not there yet
    model = SimpleNamespace(parameters=lambda: {"a": weights, "tied": weights})
    other = SimpleNamespace(parameters=lambda: {"a": weights, "b": mx.zeros((256, 1024))})
    assert model_bytes(model, None) == 2**22
    assert model_bytes(model, other) == 2**22 + 2**20
    with pytest.raises(CapacityError, match=rf"models hold {2**22 + 2**20}"):
        memory_room(2**22, model, other)
    before = mx.get_active_memory() - LEDGER.held()
    room = memory_room(before + 2**24, model)
    assert room == before + 2**24 - max(before, 2**22)


def test_what_a_step_takes_is_in_the_budget() -> None:
    """Stops a wide batch over a large vocabulary from taking memory that nobody counted."""
    speculation = SpeculationConfig(num_draft_tokens=4)
    plain = Engine(make_model(), None, speculation=speculation)
    row = Sequence([1], SamplingParams(max_tokens=9))
    assert plain.memory.budget.kv.token_bytes == VOCABULARY * 4 * STEP_COPIES
    assert plain.decoder.speculation.most_of(row) == 0
    engine = Engine(make_model(), None, draft_model=make_model(), speculation=speculation)
    kv = engine.memory.budget.kv
    guesses = engine.decoder.speculation.most_of(row)
    assert guesses == 4
    slots = kv.slot_bytes([10, 20], [guesses] * 2)
    assert kv.nbytes([10, 20], [guesses] * 2) == slots + 10 * VOCABULARY * 4 * STEP_COPIES


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_choosing_tokens_takes_no_more_than_is_budgeted(dtype: mx.Dtype) -> None:
    option = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=1)
    batch = SamplingBatch.of([Sequence([1], option)] * 2)
    logits = mx.random.normal((2, 5, 50_000)).astype(dtype)
    positions = mx.broadcast_to(mx.arange(5), (2, 5))
    mx.eval(logits)
    mx.reset_peak_memory()
    before = mx.get_active_memory() - logits.nbytes
    mx.eval(batch.choose(logits, positions))
    assert mx.get_peak_memory() - before <= STEP_COPIES * 4 * logits.size


def test_another_s_peak_is_not_forgotten() -> None:
    """Stops a short call from resetting the peak memory that a running one will report."""
    options: dict[str, Any] = {"sampling": SamplingParams(max_tokens=4)}
    with stream_batch_generate(target("llama"), None, [[1, 2]], **options) as outer:
        next(outer)
        ballast = mx.zeros((2**22,)) + 1
        mx.eval(ballast)
        del ballast
        with stream_batch_generate(target("llama"), None, [[3]], **options) as inner:
            for _ in inner:
                pass
        assert outer.stats.peak_memory >= 2**24
    with stream_batch_generate(target("llama"), None, [[3]], **options) as alone:
        assert alone.stats.peak_memory < 2**24 + mx.get_active_memory()


def test_every_driver_raises_metal_s_limit_and_the_last_restores_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stops a pipeline or a server from running a big model unwired, and a limit left behind."""
    limits = [5]

    def set_limit(limit: int) -> int:
        limits.append(limit)
        return limits[-2]

    metal = SimpleNamespace(
        metal=SimpleNamespace(is_available=lambda: True),
        set_wired_limit=set_limit,
        get_active_memory=mx.get_active_memory,
    )
    monkeypatch.setattr(memory, "mx", metal)
    monkeypatch.setattr(memory, "recommended_memory", lambda: 2**33)
    options = SamplingParams(max_tokens=3)
    with BatchedMLXGenerator(target("llama"), None) as generator:
        generator.submit([1, 2], options).result(PATIENCE)
        assert limits == [5, 2**33]
        with stream_batch_generate(target("llama"), None, [[3]], sampling=options) as stream:
            next(stream)
        assert limits == [5, 2**33]
    assert limits == [5, 2**33, 5]
    with stream_batch_generate(target("llama"), None, [[3]], sampling=options) as stream:
        next(stream)
        assert limits[3:] == [2**33]
    assert limits[3:] == [2**33, 5]
