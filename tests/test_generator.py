"""The generator: every request's output equals its solo run, whatever happens around it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from mlx_spec.batching.engine import Engine, TokenBudget
from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import CapacityError, GeneratorClosed, InvalidRequest
from mlx_spec.sequence import Sequence
from tests.memory import settled_memory
from tests.models import VOCABULARY
from tests.scenario import make_jobs, noisy_draft, target
from tests.waiting import PATIENCE

SPECULATION = SpeculationConfig(num_draft_tokens=4, probe_interval=3)


def make_generator(rows: int = 4, draft: bool = True, **batching: Any) -> BatchedMLXGenerator:
    batching.setdefault("batch_timeout", 0.02)
    return BatchedMLXGenerator(
        target("llama"),
        None,
        draft_model=noisy_draft("llama") if draft else None,
        batching=BatchingConfig(batch_size=rows, **batching),
        speculation=SPECULATION,
    )


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name == "mlx-spec"}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefix cache": {"prefix_cache_bytes": 2**20, "block_size": 4},
    "tiny prefix cache": {"prefix_cache_bytes": 20_000, "block_size": 4},
    "small prefill": {"prefill_step_size": 8, "prefill_interleave": 3},
    "no preemption": {"enable_preemption": False},
    "few tokens": {"max_batch_tokens": 200},
}


@pytest.mark.cut(4)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [3, 32])
def test_outputs_equal_solo_runs_under_random_traffic(
    rows: int, sampled: bool, setting: str
) -> None:
    """Random arrivals, priorities, cancellations and batch sizes, all at once."""
    jobs = make_jobs("llama", sampled, 40)
    rng = random.Random(rows)
    with make_generator(rows, **SETTINGS[setting]) as generator:
        streams: list[TokenStream] = []
        for job in jobs:
            streams.append(
                generator.submit(list(job.prompt), job.sampling, priority=rng.randint(0, 3))
            )
            if rng.random() < 0.2:
                time.sleep(0.01)
            if rng.random() < 0.15:
                rng.choice(streams).cancel()
            if rng.random() < 0.15:
                generator.set_batch_size(rng.randint(1, rows))
        results = [stream.result(PATIENCE) for stream in streams]
    for job, result in zip(jobs, results, strict=True):
        if result.finish_reason == "cancelled":
            assert tuple(result.token_ids) == job.expected[: len(result.token_ids)]
        else:
            assert tuple(result.token_ids) == job.expected
    assert sum(result.finish_reason == "cancelled" for result in results) < len(jobs)
    assert not threads()


@pytest.mark.parametrize("room", [10**9, 0], ids=["kept aside", "computed again"])
def test_preempted_requests_go_on_exactly(room: int) -> None:
    """A more urgent request takes the only row; the other one continues where it was."""
    jobs = make_jobs("llama", True, 12)
    long = max(jobs, key=lambda job: len(job.expected))
    urgent = jobs[1]
    with make_generator(1) as generator:
        first = generator.submit(list(long.prompt), long.sampling)
        next(first)
        engine_limit(generator, room)
        second = generator.submit(list(urgent.prompt), urgent.sampling, priority=9)
        assert tuple(second.result(PATIENCE).token_ids) == urgent.expected
        assert not first.done
        assert tuple(first.result(PATIENCE).token_ids) == long.expected
        assert generator.stats().preempted == 1


def engine_limit(generator: BatchedMLXGenerator, room: int) -> None:
    """Let the engine keep rows aside, or not: ``room`` is what K/V may take, in bytes."""

    def limit(engine: Engine) -> None:
        engine.memory.budget = TokenBudget(replace(engine.memory.budget.kv, limit=room), None)

    generator._worker.post(limit)


def test_async_iteration_and_await() -> None:
    jobs = make_jobs("llama", False, 4)

    async def run() -> list[tuple[int, ...]]:
        with make_generator(2) as generator:
            first = generator.submit(list(jobs[0].prompt), jobs[0].sampling)
            tokens = [chunk.token async for chunk in first]
            others = [generator.submit(list(j.prompt), j.sampling) for j in jobs[1:3]]
            results = await asyncio.gather(*others)
            last = await generator.agenerate([list(jobs[3].prompt)], jobs[3].sampling)
        return [tuple(tokens), *(tuple(r.token_ids) for r in [*results, *last])]

    assert asyncio.run(run()) == [job.expected for job in jobs]


def test_idle_waits_for_the_timeout() -> None:
    sampling = SamplingParams(max_tokens=1)
    with make_generator(4, batch_timeout=0.2) as generator:
        assert generator.submit([1, 2], sampling).result(PATIENCE).queue_time >= 0.2


def emitted(engine: Engine) -> list[Sequence]:
    """Who gains tokens by a step: one call launches it, the next one reads it."""
    return engine.step() or engine.step()


def test_a_lone_request_does_not_wait_unless_asked_to() -> None:
    """Stops an idle server from adding its accumulation time to every first token."""
    now = [100.0]  # a clock that stands still: whatever must wait would wait for ever
    batching = BatchingConfig(batch_size=4)
    engine = Engine(target("llama"), None, batching=batching, clock=lambda: now[0])
    lone = Sequence([1, 2], SamplingParams(max_tokens=1))
    engine.submit(lone)
    assert emitted(engine) == [lone]
    assert lone.ended
    patient = replace(batching, batch_timeout=0.5)
    engine = Engine(target("llama"), None, batching=patient, clock=lambda: now[0])
    requests = [Sequence([i, 2], SamplingParams(max_tokens=1)) for i in range(6)]
    engine.submit(*requests[:2])
    now[0] += 0.49
    assert emitted(engine) == []
    assert {request.state.value for request in requests[:2]} == {"waiting"}
    now[0] += 0.02
    assert emitted(engine) == requests[:2]  # together
    engine.submit(*requests[2:])
    assert len(emitted(engine)) == 4  # full


def test_a_full_batch_does_not_wait_for_the_timeout() -> None:
    sampling = SamplingParams(max_tokens=1)
    with make_generator(4, batch_timeout=3600.0) as generator:
        streams = [generator.submit([1, 2 + i], sampling) for i in range(4)]
        assert all(stream.result(PATIENCE).token_ids for stream in streams)


def test_a_failing_worker_reaches_every_reader() -> None:
    generator = make_generator(2)
    streams = [generator.submit([1, 2, 3], SamplingParams(max_tokens=400)) for _ in range(4)]
    next(streams[0])

    def explode(engine: Any) -> None:
        raise RuntimeError("planted")

    generator._worker.post(explode)
    for stream in streams:
        with pytest.raises(RuntimeError, match="planted"):
            stream.result(PATIENCE)
    with pytest.raises(GeneratorClosed, match="planted"):
        generator.submit([1])
    generator.close()
    assert not threads()


def test_close_cancels_what_runs_and_refuses_more() -> None:
    generator = make_generator(2)
    streams = [generator.submit([1, 2, 3 + i], SamplingParams(max_tokens=400)) for i in range(4)]
    next(streams[0])
    generator.close()
    generator.close()
    results = [stream.result(5) for stream in streams]
    assert {result.finish_reason for result in results} == {"cancelled"}
    assert results[0].token_ids
    with pytest.raises(GeneratorClosed, match="closed"):
        generator.submit([1])


def test_who_saw_a_request_end_sees_it_in_the_statistics() -> None:
    """However it ended, and although no step follows."""
    with make_generator(2) as generator:
        for count in range(1, 21):
            generator.submit([1, 2, count], SamplingParams(max_tokens=2)).result(PATIENCE)
            stats = generator.stats()
            assert (stats.running, stats.finished) == (0, count)
        for count in range(1, 6):
            stream = generator.submit([1, 2, 3], SamplingParams(max_tokens=400))
            next(stream)
            stream.cancel()
            stream.result(PATIENCE)
            stats = generator.stats()
            assert (stats.running, stats.cancelled) == (0, count)


def test_bad_requests_are_refused_with_the_numbers() -> None:
    with make_generator(2, max_batch_tokens=50, max_seq_len=40) as generator:
        with pytest.raises(InvalidRequest, match="the prompt is empty"):
            generator.submit([])
        with pytest.raises(InvalidRequest, match="context is 40"):
            generator.submit([1] * 40)
        with pytest.raises(InvalidRequest, match=f"vocabulary has {VOCABULARY}"):
            generator.submit([VOCABULARY]).result(5)
        with pytest.raises(InvalidRequest, match=r"max_batch_tokens"):
            generator.submit([1] * 10, SamplingParams(max_tokens=45)).result(5)
        with pytest.raises(InvalidRequest, match="rows=0"):
            generator.set_batch_size(0)
        stream = generator.submit([1], SamplingParams(max_tokens=20), request_id="a")
        with pytest.raises(InvalidRequest, match="'a' is in use"):
            generator.submit([1], request_id="a")
        stream.cancel()
        generator.drain(10)
    with pytest.raises(CapacityError, match="memory_limit is 1000 bytes"):
        make_generator(2, memory_limit=1000)


def test_requests_that_do_not_fit_together_wait() -> None:
    """K/V for two rows at most, although there are eight rows."""
    per_token = 2 * 2 * 2 * 8 * 4  # layers, k and v, heads, dims, float32
    limit = settled_memory() + 2 * 2 * 64 * per_token + 10_000
    most = 0
    with make_generator(8, draft=False, memory_limit=limit) as generator:
        streams = [generator.submit([1, i], SamplingParams(max_tokens=40)) for i in range(8)]
        for stream in streams:
            for _ in stream:
                stats = generator.stats()
                most = max(most, stats.running)
                assert stats.cache_bytes <= 2 * 2 * 64 * per_token + 10_000
    assert 1 < most < 8


@pytest.mark.parametrize("ending", ["generator.close()", "pass", "raise SystemExit(0)"])
def test_a_process_ends_cleanly_with_or_without_close(ending: str) -> None:
    """Stops an abort at exit, when the worker's thread outlives the interpreter."""
    script = f"""
from mlx_spec import BatchedMLXGenerator, SamplingParams
from tests.models import make_model
model = make_model()
generator = BatchedMLXGenerator(model, None, draft_model=model)
first = generator.submit([1, 2, 3], SamplingParams(max_tokens=20))
print(len(first.result(60).token_ids))
generator.submit([1, 2, 3], SamplingParams(max_tokens=400))
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "20"), done.stderr
