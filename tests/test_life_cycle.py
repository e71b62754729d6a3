"""What nobody wants any more is let go: requests, rows, threads and memory.

Whoever gives up, is refused or is forgotten leaves no row taken and no reader waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.api import stream_batch_generate
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import GeneratorClosed, InvalidRequest
from tests.models import endless, make_model
from tests.waiting import PATIENCE, eventually

# Some minutes of decoding: nothing here ends by itself.
LONG = SamplingParams(max_tokens=100_000)
SHORT = SamplingParams(max_tokens=3)


def make_generator(rows: int = 2) -> BatchedMLXGenerator:
    config = BatchingConfig(batch_size=rows, batch_timeout=0.0)
    return BatchedMLXGenerator(endless(), None, batching=config)


def all_free(generator: BatchedMLXGenerator) -> None:
    """No request waits or runs, and a further one is served."""
    eventually(lambda: (s := generator.stats()).running == s.waiting == 0)
    assert generator.stats().kv.slots_used == 0
    generator.drain(PATIENCE)
    assert len(generator.submit([1], SHORT).result(PATIENCE).token_ids) == 3


def give_up_by_timeout(generator: BatchedMLXGenerator) -> None:
    with pytest.raises(TimeoutError):
        generator.generate([[1], [2], [3]], LONG, timeout=0.05)


def give_up_by_cancelling(generator: BatchedMLXGenerator) -> None:
    async def run() -> None:
        task = asyncio.create_task(generator.agenerate([[1], [2], [3]], LONG))
        while not generator.stats().running:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def give_up_by_a_bad_prompt(generator: BatchedMLXGenerator) -> None:
    with pytest.raises(InvalidRequest, match="prompt 3 of 3 is empty"):
        generator.generate([[1], [2], []], LONG)
    assert generator.stats().cancelled == 0  # none was even begun


def give_up_by_a_late_refusal(generator: BatchedMLXGenerator) -> None:
    """The engine refuses what only it can know, when the others are under way."""
    with pytest.raises(InvalidRequest, match="vocabulary"):
        generator.generate([[1], [10**6], [2]], LONG)


def give_up_by_break(generator: BatchedMLXGenerator) -> None:
    for _ in generator.submit([1], LONG):
        break


def give_up_by_async_break(generator: BatchedMLXGenerator) -> None:
    async def run() -> None:
        async for _ in generator.submit([1], LONG):
            break

    asyncio.run(run())


def give_up_by_an_error_in_the_loop(generator: BatchedMLXGenerator) -> None:
    def read() -> None:
        for _ in generator.submit([1], LONG):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()


def give_up_by_waiting_no_longer(generator: BatchedMLXGenerator) -> None:
    stream = generator.submit([1], LONG)

    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream, 0.05)

    asyncio.run(run())
    assert stream.result(PATIENCE).finish_reason == "cancelled"


def give_up_by_leaving_the_block(generator: BatchedMLXGenerator) -> None:
    async def run() -> None:
        async with generator.submit([1], LONG) as stream:
            await stream.__anext__()
        assert (await stream).finish_reason == "cancelled"

    asyncio.run(run())
    with generator.submit([1], LONG) as stream:
        next(stream)
    assert stream.result(PATIENCE).token_ids


def give_up_by_forgetting(generator: BatchedMLXGenerator) -> None:
    """Running and waiting ones alike."""
    streams = [generator.submit([1, n], LONG) for n in range(6)]
    next(streams[0])
    del streams


@pytest.mark.parametrize(
    "give_up",
    [
        give_up_by_timeout,
        give_up_by_cancelling,
        give_up_by_a_bad_prompt,
        give_up_by_a_late_refusal,
        give_up_by_break,
        give_up_by_async_break,
        give_up_by_an_error_in_the_loop,
        give_up_by_waiting_no_longer,
        give_up_by_leaving_the_block,
        give_up_by_forgetting,
    ],
    ids=lambda way: way.__name__.removeprefix("give_up_by_"),
)
def test_who_gives_up_leaves_nothing_running(
    give_up: Callable[[BatchedMLXGenerator], None],
) -> None:
    with make_generator() as generator:
        give_up(generator)
        all_free(generator)


def test_a_stream_that_is_held_may_be_read_on_after_a_break() -> None:
    with make_generator() as generator:
        stream = generator.submit([1], SHORT)
        for _ in stream:
            break
        gc.collect()
        assert len(list(stream)) == 2
        assert stream.result(PATIENCE).finish_reason == "length"


def test_drain_wakes_up_when_the_last_request_is_refused() -> None:
    with make_generator() as generator:
        hold(generator)
        stream = generator.submit([10**6])
        drained = threading.Thread(target=generator.drain, daemon=True)
        drained.start()
        release.set()
        drained.join(PATIENCE)
        assert not drained.is_alive()
        with pytest.raises(InvalidRequest):
            stream.result(0)


release = threading.Event()


def hold(generator: BatchedMLXGenerator) -> None:
    """Keep the worker where it is until ``release``."""
    release.clear()
    generator._worker.post(lambda _: release.wait(PATIENCE))


def test_names_are_free_again_as_soon_as_the_end_was_seen() -> None:
    with make_generator() as generator:
        for _ in range(20):
            generator.submit([1], SHORT, request_id="a").result(PATIENCE)


def test_cancelling_while_the_generator_closes_never_raises() -> None:
    for _ in range(5):
        generator = make_generator()
        streams = [generator.submit([1, n], LONG) for n in range(8)]
        closing = threading.Thread(target=generator.close)
        closing.start()
        for stream in streams:
            stream.cancel()
        closing.join(PATIENCE)
        for stream in streams:
            # Those that the worker had not seen yet say that it was closed.
            with contextlib.suppress(GeneratorClosed):
                assert stream.result(PATIENCE).finish_reason == "cancelled"


class DeviceLost(RuntimeError):
    pass


def fail(*_: Any, **__: Any) -> None:
    raise DeviceLost("planted")


@pytest.mark.parametrize("calls", [["synchronize"], ["async_eval", "eval", "synchronize"]])
def test_a_device_that_raises_leaves_no_reader_waiting(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make_generator()
    streams = [generator.submit([1, n], LONG) for n in range(4)]
    next(streams[0])
    for call in calls:
        monkeypatch.setattr(mx, call, fail)
    if calls == ["synchronize"]:
        generator._worker.post(fail)
    for stream in streams:
        with pytest.raises(DeviceLost):
            stream.result(PATIENCE)
    with pytest.raises(GeneratorClosed, match="DeviceLost"):
        generator.submit([1])
    generator.drain(PATIENCE)
    generator.close()


def test_a_constructor_does_not_hang_on_a_device_that_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = endless()
    monkeypatch.setattr(mx, "synchronize", fail)
    config = BatchingConfig(memory_limit=1000)
    with pytest.raises(Exception, match="memory_limit"):
        BatchedMLXGenerator(model, None, batching=config)


def test_a_generator_that_is_dropped_ends_with_its_caches() -> None:
    before = threading.active_count()
    generator = make_generator()
    generator.generate([[1, 2, 3]], SHORT)
    engine: list[weakref.ref[Any]] = []
    generator._worker.post(lambda e: engine.append(weakref.ref(e)))
    eventually(lambda: bool(engine))
    held = mx.get_active_memory()
    del generator
    gc.collect()
    eventually(lambda: threading.active_count() == before)
    gc.collect()
    eventually(lambda: engine[0]() is None)
    assert mx.get_active_memory() <= held


def test_a_failed_generator_holds_no_caches() -> None:
    """Its error is kept, but not what the error's frames refer to."""
    generator = make_generator()
    engine: list[weakref.ref[Any]] = []
    generator._worker.post(lambda e: engine.append(weakref.ref(e)))
    stream = generator.submit([1], LONG)
    next(stream)
    generator._worker.post(fail)
    with pytest.raises(DeviceLost):
        stream.result(PATIENCE)
    eventually(lambda: gc.collect() >= 0 and engine[0]() is None)
    with pytest.raises(GeneratorClosed):
        generator.submit([1])


def test_an_error_that_is_kept_keeps_no_engine() -> None:
    """A refusal comes out of the worker's thread, whose frames know the engine."""
    engine: list[weakref.ref[Any]] = []
    with make_generator() as generator:
        generator._worker.post(lambda e: engine.append(weakref.ref(e)))
        with pytest.raises(InvalidRequest, match="holds the token id") as refusal:
            generator.submit([10**6]).result(PATIENCE)
    del generator
    eventually(lambda: gc.collect() >= 0 and engine[0]() is None)
    assert isinstance(refusal.value, InvalidRequest)


def test_a_generator_lives_while_a_stream_of_it_runs() -> None:
    """As where a function makes a generator and returns a stream."""
    before = threading.active_count()
    stream = make_generator().submit([1, 2], SamplingParams(max_tokens=50))
    gc.collect()
    assert len(list(stream)) == 50
    eventually(lambda: threading.active_count() == before)


def test_async_with_closes_the_generator_and_lets_the_loop_go_on() -> None:
    async def run() -> int:
        async with make_generator() as generator:
            stream = generator.submit([1], LONG)
            await stream.__anext__()
            hold(generator)
            asyncio.get_running_loop().call_later(0.05, release.set)  # heard while it closes
        return len((await stream).token_ids)

    assert asyncio.run(run()) > 0


@pytest.mark.parametrize("draft", [None, "model", "ngram+model", "lookahead", "self"])
def test_a_batch_stream_that_is_dropped_in_the_middle_goes_at_once(draft: str | None) -> None:
    """Without a garbage collection, which may be long in coming while K/V are held."""
    gc.disable()
    try:
        stream = stream_batch_generate(
            endless(),
            None,
            [[1, 2], [3]],
            sampling=LONG,
            draft_model=make_model("llama", seed=1) if "model" in (draft or "") else None,
            speculation=SpeculationConfig(draft=draft),
        )
        for _ in range(8):
            next(stream)
        engine, decoder = stream._engine, stream._engine.decoder
        held = [weakref.ref(one) for one in (engine, decoder, decoder.drafter, *decoder.runners)]
        del stream, engine, decoder
        assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()
