"""Steps that find no memory: one request is told so, the others' texts are what they would be."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import BatchedMLXGenerator, BatchingConfig, GenerationResult, SamplingParams
from mlx_spec.batching import shortage
from mlx_spec.batching.shortage import is_shortage
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.feeding import Feeder
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.errors import OutOfMemory
from mlx_spec.events import Event, MemoryRanOut
from tests.scenario import noisy_draft, target
from tests.servers import CHAT, Live, content_of, events_of, running_server, said, truth

Patch = pytest.MonkeyPatch
COUNT, TOKENS = 8, 30
PLACES: dict[str, tuple[Any, str]] = {
    "prefill": (Feeder, "take"),
    "decode": (Stepper, "launch"),
    "draft": (ModelDrafter, "propose"),
}
ERRORS: dict[str, Callable[[], Exception]] = {
    "of Python": MemoryError,
    "of MLX": lambda: RuntimeError("[malloc] Unable to allocate 123456789 bytes."),
}


def planted(
    patch: Patch, where: str, times: tuple[int, ...], error: Callable[[], Exception]
) -> list[int]:
    """Have the calls with these numbers fail; the numbers of those that have."""
    owner, name = PLACES[where]
    real, calls, failed = getattr(owner, name), [0], list[int]()

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] in times:
            failed.append(calls[0])
            raise error()
        return real(self, *arguments, **options)

    patch.setattr(owner, name, call)
    return failed


@contextmanager
def generator(events: list[Event], **batching: Any) -> Iterator[BatchedMLXGenerator]:
    with BatchedMLXGenerator(
        target("llama"),
        None,
        draft_model=noisy_draft("llama"),
        batching=BatchingConfig(batch_size=4, batch_timeout=0.02, **batching),
        listeners=[events.append],
    ) as made:
        yield made


def ask(made: BatchedMLXGenerator, count: int = COUNT) -> list[GenerationResult]:
    """Greedy and sampled ones, of different lengths; streams that are read as they come."""
    streams = [
        made.submit(
            [1 + n, 7, *range(3, 3 + n)],
            SamplingParams(max_tokens=TOKENS + n, temperature=0.8 * (n % 2), seed=n),
        )
        for n in range(count)
    ]
    read = [[chunk.token for chunk in stream] for stream in streams]
    results = [stream.result() for stream in streams]
    assert [one.token_ids for one in results] == read
    return results


@pytest.fixture(scope="module")
def right() -> list[list[int]]:
    with generator([]) as made:
        return [one.token_ids for one in ask(made)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", PLACES)
def test_one_is_told_and_all_others_say_what_they_would(
    where: str, error: str, right: list[list[int]], monkeypatch: Patch
) -> None:
    events: list[Event] = []
    failed = planted(monkeypatch, where, (3, 9), ERRORS[error])
    with generator(events) as made:
        results = ask(made)
        assert failed == [3, 9]
        lost = [n for n, one in enumerate(results) if one.finish_reason == "error"]
        assert len(lost) == 2
        for n, one in enumerate(results):
            if n in lost:
                assert str(one.error).startswith(OutOfMemory.WORDS)
                assert one.token_ids == right[n][: len(one.token_ids)]
            else:
                assert one.token_ids == right[n]
        stats = made.stats()
        assert (stats.running, stats.waiting, stats.finished) == (0, 0, COUNT)
        assert stats.batch_size == 4  # as many as before, once nothing runs
        assert stats.kv.bytes_held == stats.kv.slots_used == stats.kv.bytes_saved == 0
        # And the next ones are served as ever.
        assert [one.token_ids for one in ask(made)] == right
        assert made.stats().generation.drafted > 0
    assert len([one for one in events if isinstance(one, MemoryRanOut)]) == 2


def test_nothing_is_held_afterwards(monkeypatch: Patch) -> None:
    """Neither by the error nor by the decoder that was."""
    with generator([]) as made:
        ask(made)
        gc.collect()
        before = mx.get_active_memory()
        failed = planted(monkeypatch, "decode", (3, 5, 8, 20), MemoryError)
        ask(made)
        made.drain()
        assert failed == [3, 5, 8, 20]
        made.stats()  # behind the last step
        gc.collect()
        assert mx.get_active_memory() <= before + 50_000


def test_fewer_rows_run_for_a_while(monkeypatch: Patch) -> None:
    """Half of them, and then one more at a time."""
    monkeypatch.setattr(shortage, "CALM", 5)
    events: list[Any] = []
    planted(monkeypatch, "decode", (3,), MemoryError)
    with generator(events) as made:
        ask(made, 30)
    sizes = [one.batch_size for one in events if type(one).__name__ == "StepDone"]
    assert sorted({*sizes}) == [2, 3, 4]
    assert sizes.index(2) < sizes.index(3) < len(sizes) - sizes[::-1].index(4)


def test_where_no_step_finds_memory_each_is_told(monkeypatch: Patch) -> None:
    planted(monkeypatch, "decode", tuple(range(1, 99)), MemoryError)
    with generator([]) as made:
        assert {one.finish_reason for one in ask(made, 5)} == {"error"}


def test_other_failures_end_the_worker_as_ever(monkeypatch: Patch) -> None:
    planted(monkeypatch, "decode", (3,), lambda: RuntimeError("[matmul] shapes do not fit"))
    with generator([]) as made, pytest.raises(RuntimeError, match="shapes do not fit"):
        ask(made)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (
            RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than"),
            True,
        ),
        (
            RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00008)"),
            True,
        ),
        (RuntimeError("cudaMallocAsync(&ptr, size, stream) failed: out of memory"), True),
        (ValueError("out of memory"), False),
        (RuntimeError("[reshape] cannot"), False),
    ],
)
def test_what_says_that_there_is_none(error: Exception, short: bool) -> None:
    assert is_shortage(error) is short


def going_on_with_what_is_there(patch: Patch) -> None:
    """The caches are kept, whatever the step that failed has made of them."""
    patch.setattr("mlx_spec.batching.engine.renewed", lambda old, make: old)


def test_a_planted_bug_shows(right: list[list[int]], monkeypatch: Patch) -> None:
    going_on_with_what_is_there(monkeypatch)
    planted(monkeypatch, "decode", (3, 9), MemoryError)
    with generator([]) as made:
        try:
            results = ask(made)
        except Exception:
            return  # it ends the worker
    assert any(one.token_ids != right[n] for n, one in enumerate(results) if one.error is None)


@pytest.fixture
def live() -> Iterator[Live]:
    with running_server(batch_size=2) as server:
        yield server


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_server_says_so_and_serves_the_next(live: Live, stream: bool, monkeypatch: Patch) -> None:
    """In the words of the API; the engine is another one, in the same process."""
    planted(monkeypatch, "decode", (2,), MemoryError)
    with live.client() as client:
        reply = client.post(CHAT, json=said(stream=stream))
        error = events_of(reply.text)[-1]["error"] if stream else reply.json()["error"]
        assert error["code"] == "out_of_memory"
        assert OutOfMemory.WORDS in error["message"]
        if not stream:
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert content_of(client.post(CHAT, json=said(content="x"))) == truth("x", 8)
        assert client.get("/health").status_code == 200
        assert "mlx_spec_out_of_memory_total 1.0" in client.get("/metrics").text
        stats = client.get("/v1/stats").json()
        assert stats["happening"]["out_of_memory"] == 1
        assert (stats["rows"]["running"], stats["kv"]["bytes"] - stats["kv"]["bytes_prefix"]) == (
            0,
            0,
        )


def test_of_a_batch_the_others_go_on(live: Live, monkeypatch: Patch) -> None:
    planted(monkeypatch, "decode", (3,), MemoryError)
    body = {"prompts": ["def a", "x", "class B"], "max_tokens": 12}
    with live.client() as client:
        results = client.post("/generate/batch", json=body).json()["results"]
    assert sorted(one["finish_reason"] == "error" for one in results) == [False, False, True]
