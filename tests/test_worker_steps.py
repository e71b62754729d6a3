"""What a generator's thread does at a step beside decoding: little, and the same whoever asks."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from mlx_spec.batching import worker as worker_module
from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.generator_stats import GeneratorStats
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.events import Event, StepDone
from tests.models import endless
from tests.waiting import PATIENCE

LONG = SamplingParams(max_tokens=100_000)


class Counts:
    """Locks taken and readers woken by the worker's thread, by (step, request)."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.step = 0
        self.locks: Counter[tuple[int, str]] = Counter()
        self.wakes: Counter[tuple[int, str]] = Counter()
        self.loop_wakes: Counter[int] = Counter()
        counts = self

        class Counted(threading.Condition):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.name = name

            def __enter__(self) -> bool:
                if threading.current_thread().name == "mlx-spec":
                    counts.locks[counts.step, self.name] += 1
                return super().__enter__()

            def notify_all(self) -> None:
                counts.wakes[counts.step, self.name] += 1
                super().notify_all()

        made, step = ChunkBuffer.__init__, Engine.step

        def make(buffer: ChunkBuffer, request_id: str, *rest: Any) -> None:
            made(buffer, request_id, *rest)
            buffer._changed = Counted(request_id)

        def count(engine: Engine, **options: Any) -> Any:
            counts.step += 1
            return step(engine, **options)

        patch.setattr(ChunkBuffer, "__init__", make)
        patch.setattr(Engine, "step", count)


def drafting(rows: int = 3, **options: Any) -> BatchedMLXGenerator:
    """A generator whose draft is the target: five tokens a row and step."""
    model = endless()
    return BatchedMLXGenerator(
        model,
        None,
        draft_model=model,
        batching=BatchingConfig(batch_size=rows),
        speculation=SpeculationConfig(num_draft_tokens=4, adaptive=False),
        **options,
    )


def test_a_step_takes_each_stream_s_lock_once_and_wakes_its_readers_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = Counts(monkeypatch)
    sampling = SamplingParams(max_tokens=41)

    async def read(generator: BatchedMLXGenerator) -> list[int]:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*arguments: Any) -> Any:
            counts.loop_wakes[counts.step] += 1
            return wake(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        return [chunk.token async for chunk in generator.submit([7, 8], sampling)]

    with drafting() as generator:
        streams = [generator.submit([1 + n, 2], sampling) for n in range(2)]
        tokens = asyncio.run(read(generator))
        results = [stream.result(PATIENCE) for stream in streams]
    assert len(tokens) == 41
    # Several tokens a step, or this would show nothing.
    assert all(result.verify_steps <= 12 for result in results)
    assert set(counts.locks.values()) == {1}
    assert set(counts.wakes.values()) == {1}
    assert len(counts.wakes) <= sum(result.verify_steps for result in results) + 12
    assert counts.loop_wakes
    assert max(counts.loop_wakes.values()) == 1


def counted_looks(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that looked at the engine, for statistics."""
    looks: list[str] = []
    right = worker_module.generator_stats

    def look(engine: Engine) -> GeneratorStats:
        looks.append(threading.current_thread().name)
        return right(engine)

    patch.setattr(worker_module, "generator_stats", look)
    return looks


def test_statistics_that_nobody_asks_for_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = counted_looks(monkeypatch)
    with drafting() as generator:
        assert looks == ["mlx-spec"]  # once it is made
        generator.generate([[1], [2], [3], [4]], SamplingParams(max_tokens=60))
        assert len(looks) == 1
        assert generator.stats().finished == 4
        assert looks == ["mlx-spec"] * 2
    assert len(looks) == 3  # and once it is closed


def test_who_has_seen_a_request_end_sees_it_in_the_statistics() -> None:
    with drafting(rows=2) as generator:
        noise = generator.submit([9], LONG)
        for number in range(12):
            result = generator.submit([number, 3], SamplingParams(max_tokens=6)).result(PATIENCE)
            stats = generator.stats()
            assert (stats.finished, stats.cancelled) == (number + 1, 0)
            assert stats.generation.generation_tokens >= result.generation_tokens
        noise.cancel()
        assert noise.result(PATIENCE).finish_reason == "cancelled"
        assert (generator.stats().cancelled, generator.stats().running) == (1, 0)


def test_statistics_come_while_a_step_takes_long() -> None:
    """Stops whoever shows a generator from waiting for a long prompt that is being read."""
    release, held = threading.Event(), threading.Event()
    with drafting() as generator:
        generator.submit([1], SamplingParams(max_tokens=3)).result(PATIENCE)

        def hold(_: Engine) -> None:
            held.set()
            release.wait(PATIENCE)

        generator._worker.post(hold)
        assert held.wait(PATIENCE)
        seen: list[int] = []
        asking = [
            threading.Thread(target=lambda: seen.append(generator.stats().finished), daemon=True)
            for _ in range(3)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(PATIENCE)
        assert seen == [1, 1, 1]
        assert not release.is_set()
        release.set()


def test_statistics_outlive_the_worker() -> None:
    generator = drafting()
    stream = generator.submit([1], LONG)
    next(stream)
    generator.close()
    assert stream.result(PATIENCE).finish_reason == "cancelled"
    stats = generator.stats()
    assert (stats.cancelled, stats.running, stats.waiting) == (1, 0, 0)
    assert stats.generation.generation_tokens >= 1

    def fail(_: Engine) -> None:
        raise RuntimeError("planted")

    generator = drafting()
    generator.submit([1], SamplingParams(max_tokens=2)).result(PATIENCE)
    generator._worker.post(fail)
    generator.drain(PATIENCE)
    generator._worker._thread.join(PATIENCE)
    assert generator.stats().finished == 1


def test_a_listener_may_ask_in_the_worker_s_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a listener that shows statistics from waiting for the step that it is part of."""
    seen: list[int] = []
    monkeypatch.setattr(worker_module, "LONGEST_WAIT", 5.0)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            seen.append(generator.stats().running)

    generator = drafting(listeners=[listen])
    with generator:
        generator.generate([[1], [2]], SamplingParams(max_tokens=6), timeout=4.0)
    assert seen


def test_many_may_ask_at_once() -> None:
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                stats = generator.stats()
                assert stats.running + stats.waiting <= 1
        except BaseException as error:
            errors.append(error)

    with drafting() as generator:
        stream = generator.submit([1], LONG)
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        stream.cancel()
    assert errors == []
