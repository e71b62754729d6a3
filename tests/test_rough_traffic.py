"""Everything goes wrong at once, and nobody is left waiting: seeded, so that it can be repeated.

Tokenizers, listeners and the device raise; readers time out, cancel, are cancelled, drop their
streams and close them. Whatever happened, at the end every stream has ended, every row is free and
what was read is the beginning of what the target alone says.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import warnings
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import BatchedMLXGenerator
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.events import Event
from tests.scenario import Job, make_jobs, target
from tests.test_row_errors import BAD, Tokenizer
from tests.traffic import given
from tests.waiting import PATIENCE, eventually


class DeviceLost(RuntimeError):
    pass


class Unsteady:
    """A listener that raises one day."""

    def __init__(self, rng: random.Random) -> None:
        self._left = rng.randint(1, 60)

    def __call__(self, event: Event) -> None:
        self._left -= 1
        if self._left == 0:
            raise LookupError("planted")


def wait_for(stream: TokenStream, rng: random.Random) -> None:
    try:
        stream.result(rng.choice([0.0, 0.002, 0.05]))
    except TimeoutError:
        if rng.random() < 0.5:
            stream.cancel()


def await_it(stream: TokenStream, rng: random.Random) -> None:
    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(stream), 0)
        task = asyncio.ensure_future(stream)
        await asyncio.sleep(rng.choice([0.0, 0.01]))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def read_some(stream: TokenStream, rng: random.Random) -> None:
    wanted = rng.randint(1, 5)
    for count, _ in enumerate(stream, start=1):
        if count == wanted:
            break


def leave_the_block(stream: TokenStream, rng: random.Random) -> None:
    with stream:
        read_some(stream, rng)


def do_nothing(stream: TokenStream, rng: random.Random) -> None:
    """Not even hold it, half of the time."""


WAYS = [wait_for, await_it, read_some, leave_the_block, do_nothing, do_nothing]


class Client(threading.Thread):
    """Submits in its own thread and treats its streams badly."""

    def __init__(self, generator: BatchedMLXGenerator, seed: int, family: str = "llama") -> None:
        super().__init__(daemon=True)
        self._generator, self._rng = generator, random.Random(seed)
        self._jobs = make_jobs(family, False, 16)
        self.held: list[tuple[Job, TokenStream]] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for job in self._rng.sample(self._jobs, 8):
                self._one(job)
        except (GeneratorClosed, DeviceLost):
            pass  # said to whoever comes too late, or waits
        except BaseException as error:
            self.error = error

    def _one(self, job: Job) -> None:
        rng = self._rng
        if rng.random() < 0.1:
            with pytest.raises((InvalidRequest, GeneratorClosed, DeviceLost)):
                self._generator.generate([list(job.prompt), [10**6]], timeout=PATIENCE)
        priority = rng.randint(0, 2)
        stream = self._generator.submit(list(job.prompt), job.sampling, priority=priority)
        hold = rng.random() < 0.6
        if hold:
            self.held.append((job, stream))
        rng.choice(WAYS)(stream, rng)
        if rng.random() < 0.2:
            self._generator.set_batch_size(rng.randint(1, 4))


def make_generator(
    rng: random.Random, family: str = "llama", draft: str | None = None
) -> BatchedMLXGenerator:
    return BatchedMLXGenerator(
        target(family),
        Tokenizer("add"),
        draft_model=given(family, draft),
        batching=BatchingConfig(
            batch_size=3, batch_timeout=0.0, prefill_interleave=4, prefix_cache_bytes=2**18
        ),
        speculation=SpeculationConfig(num_draft_tokens=4, probe_interval=3, draft=draft),
        listeners=[Unsteady(rng), Unsteady(rng)],
    )


def may_say(job: Job) -> tuple[int, ...]:
    """Its tokens as far as there is a text for them."""
    expected = job.expected
    stops = job.sampling.stop_token_ids
    if BAD in expected and BAD not in stops:
        return expected[: expected.index(BAD)]
    return expected


def check(held: list[tuple[Job, TokenStream]], lost: bool) -> None:
    """Every stream has ended, in a way that is true."""
    for job, stream in held:
        try:
            result = stream.result(PATIENCE)
        except (DeviceLost, GeneratorClosed):
            assert lost
            continue
        expected = may_say(job)
        if result.finish_reason == "cancelled":
            assert tuple(result.token_ids) == expected[: len(result.token_ids)]
        else:
            assert tuple(result.token_ids) == expected
            assert (result.finish_reason == "error") == (len(expected) < len(job.expected))


def treat_badly(seed: int, family: str, draft: str | None = None) -> None:
    """Nobody waits and every row is free, at the end."""
    first = make_jobs(family, False, 1)[0]
    rng = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the listeners that were dropped
        with make_generator(rng, family, draft) as generator:
            clients = [Client(generator, 10 * seed + n, family) for n in range(4)]
            for client in clients:
                client.join(PATIENCE)
                assert not client.is_alive()
                assert client.error is None
            check([pair for client in clients for pair in client.held], lost=False)
            gc.collect()
            generator.drain(PATIENCE)
            stats = generator.stats()
            assert (stats.running, stats.waiting, stats.kv.slots_used) == (0, 0, 0)
            generator.set_batch_size(3)
            again = generator.submit(list(first.prompt), SamplingParams(max_tokens=1))
            assert again.result(PATIENCE).token_ids == [first.expected[0]]


@pytest.mark.parametrize("seed", range(3))
def test_nobody_waits_and_every_row_is_free(seed: int) -> None:
    treat_badly(seed, "llama")


@pytest.mark.parametrize("call", ["eval", "async_eval", "synchronize"])
def test_a_device_that_is_lost_in_the_middle(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From some moment on it raises in the worker's thread, whatever it is asked for."""
    rng = random.Random(call)
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        generator = make_generator(rng)
        worker, real, left = generator._worker._thread, getattr(mx, call), [rng.randint(5, 40)]

        def unsteady(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is worker:
                left[0] -= 1
                if left[0] < 0 or call == "synchronize":
                    raise DeviceLost("planted")
            return real(*arguments, **options)

        monkeypatch.setattr(mx, call, unsteady)
        clients = [Client(generator, n) for n in range(4)]
        if call == "synchronize":
            eventually(lambda: generator.closed or generator.stats().generation.steps > 0)
            generator.close()
        for client in clients:
            client.join(PATIENCE)
            assert not client.is_alive()
            assert client.error is None
        check([pair for client in clients for pair in client.held], lost=True)
        generator.drain(PATIENCE)
        generator.close()
    assert threading.active_count() == before
