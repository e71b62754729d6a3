"""Every public way to generate works from any thread, for models that keep arrays to themselves.

The model's rotations are scaled, so it holds frequencies that are none of its parameters; here they
are left uncomputed by the thread that builds it, as mlx-lm leaves them.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mlx_spec import (
    BatchedMLXGenerator,
    BatchingConfig,
    SamplingParams,
    batch_generate,
    generate,
    stream_batch_generate,
    stream_generate,
)
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model import device_stream
from tests.models import make_model
from tests.scenario import mlx_lm_greedy
from tests.waiting import PATIENCE

T = TypeVar("T")

SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5], [4] * 11]
SAMPLING = SamplingParams(max_tokens=12)


def scaled(seed: int = 0) -> Any:
    """A model that this thread has built and not run: its frequencies are not computed."""
    return make_model("llama", seed, rope_scaling=SCALING)


def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns in a thread of its own, its exception raised here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(PATIENCE)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What mlx-lm says in the thread that built the model."""
    model = scaled()
    return [mlx_lm_greedy(model, tuple(prompt), SAMPLING.max_tokens) for prompt in PROMPTS]


def settled() -> Any:
    """The same model after a first use in this thread, through any of our functions."""
    model = scaled()
    generate(model, None, [1], sampling=SamplingParams(max_tokens=1))
    return model


def tokens(results: Any) -> list[list[int]]:
    return [list(result.token_ids) for result in results]


def test_built_here_generator_used_everywhere(expected: list[list[int]]) -> None:
    """The generator's constructor computes what its own thread could not."""
    with BatchedMLXGenerator(scaled(), None, draft_model=scaled(1)) as generator:
        found = [in_thread(lambda p=p: generator.generate([p], SAMPLING))[0] for p in PROMPTS]
    assert tokens(found) == expected


def test_used_here_then_there(expected: list[list[int]]) -> None:
    model, draft = settled(), settled()
    for _ in range(3):
        found = in_thread(
            lambda: batch_generate(model, None, PROMPTS, draft_model=draft, sampling=SAMPLING)
        )
        assert tokens(found.results) == expected
    one = asyncio.run(asyncio.to_thread(generate, model, None, PROMPTS[0], sampling=SAMPLING))
    assert list(one.token_ids) == expected[0]


def test_built_and_used_there_then_here(expected: list[list[int]]) -> None:
    model = in_thread(settled)
    found = batch_generate(model, None, PROMPTS, sampling=SAMPLING)
    assert tokens(found.results) == expected


def test_left_uncomputed_by_another_thread_is_said() -> None:
    model = in_thread(scaled)
    with pytest.raises(UnsupportedModel, match="another thread described"):
        generate(model, None, [1])
    with pytest.raises(UnsupportedModel, match="another thread described"):
        BatchedMLXGenerator(model, None)


@pytest.mark.parametrize("draft", [False, True], ids=["plain", "draft"])
def test_each_step_in_another_thread(expected: list[list[int]], draft: bool) -> None:
    """A step is in flight whenever the thread changes; rows join and leave on the way."""
    stream = stream_batch_generate(
        settled(),
        None,
        PROMPTS,
        draft_model=settled() if draft else None,
        sampling=SAMPLING,
        batching=BatchingConfig(batch_size=2),
    )
    while in_thread(lambda: next(stream, None)) is not None:
        pass
    assert tokens(stream.result().results) == expected


def test_a_stream_is_handed_over_and_closed_elsewhere(expected: list[list[int]]) -> None:
    stream = stream_generate(settled(), None, PROMPTS[1], sampling=SAMPLING)
    first = next(stream)
    rest = in_thread(lambda: list(stream))
    assert [chunk.token for chunk in [first, *rest]] == expected[1]
    left = stream_batch_generate(settled(), None, PROMPTS, sampling=SAMPLING)
    next(left)
    in_thread(left.close)
    assert {result.finish_reason for result in left.result().results} == {"cancelled"}


def test_threads_share_a_stream(expected: list[list[int]]) -> None:
    """They never meet in it: each chunk goes to one of them."""
    stream = stream_batch_generate(settled(), None, PROMPTS, sampling=SAMPLING)
    with ThreadPoolExecutor(3) as pool:
        parts = [part.result(PATIENCE) for part in [pool.submit(list, stream) for _ in range(3)]]
    assert sum(map(len, parts)) == sum(map(len, expected))
    assert tokens(stream.result().results) == expected


def test_many_at_once_over_one_model(expected: list[list[int]]) -> None:
    """Two generators, and calls beside them."""
    model = settled()
    with BatchedMLXGenerator(model, None) as one, BatchedMLXGenerator(model, None) as two:

        def serve(generator: Any) -> list[list[int]]:
            return tokens(generator.generate(PROMPTS, SAMPLING))

        def call(_: Any) -> list[list[int]]:
            return tokens(batch_generate(model, None, PROMPTS, sampling=SAMPLING).results)

        with ThreadPoolExecutor(6) as pool:
            work = [pool.submit(serve, g) for g in (one, two, one, two)]
            work += [pool.submit(call, None) for _ in range(2)]
            assert all(part.result(PATIENCE) == expected for part in work)


def test_what_threads_leave_behind_does_not_pile_up() -> None:
    """MLX never gives a stream back, nor the thread of the system that works for it.

    On streams of their own, each of these threads would leave one; so would each call on a new one.
    """
    model = settled()

    def call() -> None:
        generate(model, None, [1], sampling=SamplingParams(max_tokens=2))

    tasks = Path("/proc/self/task")
    in_thread(call)
    before = len(list(tasks.iterdir())) if tasks.exists() else 0
    streams = len(device_stream._ALL)
    for _ in range(8):
        in_thread(call)
    assert len(device_stream._ALL) <= streams + 1
    if tasks.exists():
        assert len(list(tasks.iterdir())) <= before + 2


def test_a_process_that_stops_in_the_middle_ends_cleanly() -> None:
    """Stops an abort at exit: a step in flight, launched by a thread that is gone."""
    script = """
from concurrent.futures import ThreadPoolExecutor
from tests.test_threads import PROMPTS, SAMPLING, in_thread, settled, tokens
from mlx_spec import BatchedMLXGenerator, batch_generate, stream_batch_generate
model = in_thread(settled)
print(len(in_thread(lambda: batch_generate(model, None, PROMPTS)).results))
stream = stream_batch_generate(model, None, PROMPTS)
in_thread(lambda: next(stream))
generator = BatchedMLXGenerator(model, None)
in_thread(lambda: next(generator.submit(PROMPTS[0])))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
    assert not done.stderr
