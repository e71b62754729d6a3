"""``TokenStream`` alone: between threads, between event loops, with ends of every kind.

No test waits for a time to pass; each waits for what it is about, with a timeout against hangs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.results import GenerationChunk, GenerationResult

LONG = 20.0


def chunk(number: int) -> GenerationChunk:
    return GenerationChunk(0, f"<{number}>", number, False, None, 1, number + 1)


def result(count: int = 0) -> GenerationResult:
    return GenerationResult("", list(range(count)), "stop", 1, count, 0.0, 0.0)


def make_stream(
    cancel: Callable[[ChunkBuffer], None] = lambda _: None,
) -> tuple[TokenStream, ChunkBuffer]:
    """What a reader holds, and what the worker writes."""
    buffer = ChunkBuffer("r1", cancel)
    return TokenStream(buffer), buffer


def feed(buffer: ChunkBuffer, count: int) -> None:
    for number in range(count):
        buffer.put([chunk(number)])
    buffer.put([], result(count))


def in_thread(work: Callable[..., Any], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def test_chunks_come_in_order_from_another_thread() -> None:
    stream, buffer = make_stream()
    thread = in_thread(feed, buffer, 500)
    assert [c.token for c in stream] == list(range(500))
    assert stream.result(LONG).generation_tokens == 500
    thread.join(LONG)
    # Read to its end, it stays at its end.
    assert list(stream) == []


def test_what_was_put_before_an_error_is_read_first() -> None:
    stream, buffer = make_stream()
    buffer.put([chunk(0)])
    buffer.fail(RuntimeError("planted"))
    assert next(stream).token == 0
    for _ in range(2):
        with pytest.raises(RuntimeError, match="planted"):
            next(stream)
        with pytest.raises(RuntimeError, match="planted"):
            stream.result(LONG)


def test_only_the_first_end_counts() -> None:
    stream, buffer = make_stream()
    buffer.put([], result(3))
    buffer.fail(RuntimeError("too late"))
    buffer.put([], result(7))
    assert stream.done
    assert stream.result(LONG).generation_tokens == 3
    failed, buffer = make_stream()
    buffer.fail(RuntimeError("planted"))
    buffer.put([], result())
    with pytest.raises(RuntimeError, match="planted"):
        failed.result(LONG)


def test_an_error_reaches_readers_that_wait_in_threads_and_loops() -> None:
    stream, buffer = make_stream()
    waiting = threading.Barrier(4)

    def iterate() -> None:
        waiting.wait(LONG)
        next(stream)

    def ask() -> None:
        waiting.wait(LONG)
        stream.result(LONG)

    def await_it() -> None:
        async def run() -> None:
            waiting.wait(LONG)
            await stream

        asyncio.run(run())

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(reader) for reader in (iterate, ask, await_it)]
        waiting.wait(LONG)
        buffer.fail(RuntimeError("planted"))
        for reader in readers:
            assert isinstance(reader.exception(LONG), RuntimeError)


def test_result_gives_up_after_its_timeout_and_may_be_asked_again() -> None:
    stream, buffer = make_stream()
    with pytest.raises(TimeoutError, match=r"r1: 0\.01 s passed"):
        stream.result(0.01)
    buffer.put([], result(2))
    assert stream.result(LONG).generation_tokens == 2


def test_cancel_calls_back_and_ends_nothing_by_itself() -> None:
    cancelled: list[ChunkBuffer] = []
    stream, buffer = make_stream(cancelled.append)
    buffer.put([chunk(0)])
    stream.cancel()
    stream.cancel()
    assert cancelled == [buffer, buffer]
    assert not stream.done
    assert next(stream).token == 0


def test_two_readers_in_threads_share_the_chunks() -> None:
    """Each chunk goes to one of them, and both see the end."""
    stream, buffer = make_stream()
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(lambda: [c.token for c in stream]) for _ in range(2)]
        feed(buffer, 300)
        parts = [reader.result(LONG) for reader in readers]
    assert sorted(parts[0] + parts[1]) == list(range(300))
    assert all(part == sorted(part) for part in parts)


def test_two_loops_read_one_stream() -> None:
    stream, buffer = make_stream()

    def read() -> list[int]:
        async def run() -> list[int]:
            return [c.token async for c in stream]

        return asyncio.run(run())

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        feed(buffer, 300)
        parts = [reader.result(LONG) for reader in readers]
    assert sorted(parts[0] + parts[1]) == list(range(300))


def test_a_loop_goes_on_with_other_work_while_it_waits() -> None:
    stream, buffer = make_stream()

    async def run() -> list[str]:
        seen: list[str] = []

        async def read() -> None:
            async for c in stream:
                seen.append(f"chunk {c.token}")

        async def other() -> None:
            for number in range(2):
                seen.append(f"other {number}")
                in_thread(buffer.put, [chunk(number)]).join(LONG)
                while f"chunk {number}" not in seen:
                    await asyncio.sleep(0)
            in_thread(buffer.put, [], result(2)).join(LONG)

        await asyncio.wait_for(asyncio.gather(read(), other()), LONG)
        return seen

    assert asyncio.run(run()) == ["other 0", "chunk 0", "other 1", "chunk 1"]


def test_many_tasks_await_one_result() -> None:
    stream, buffer = make_stream()

    async def wait() -> GenerationResult:
        return await stream

    async def run() -> list[GenerationResult]:
        tasks = [asyncio.create_task(wait()) for _ in range(20)]
        await asyncio.sleep(0)
        in_thread(feed, buffer, 3)
        return await asyncio.wait_for(asyncio.gather(*tasks), LONG)

    assert {len(r.token_ids) for r in asyncio.run(run())} == {3}


def test_a_reader_that_was_cancelled_disturbs_nobody() -> None:
    """Its future is done when the worker wakes it; the other reader must still hear."""
    stream, buffer = make_stream()

    async def wait() -> GenerationResult:
        return await stream

    async def run() -> GenerationResult:
        leaving, staying = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        in_thread(feed, buffer, 1)
        return await asyncio.wait_for(staying, LONG)

    assert asyncio.run(run()).generation_tokens == 1


def test_a_loop_that_was_closed_does_not_stop_the_worker() -> None:
    """A reader's loop is gone, its wish to be woken is not."""
    stream, buffer = make_stream()
    loop = asyncio.new_event_loop()
    reader = loop.create_task(stream.__anext__())
    loop.run_until_complete(asyncio.sleep(0))
    reader.cancel()
    loop.run_until_complete(asyncio.gather(reader, return_exceptions=True))
    loop.close()
    feed(buffer, 2)
    assert [c.token for c in stream] == [0, 1]


def test_a_loop_that_closes_while_it_is_woken_does_not_stop_the_worker() -> None:
    """Between the look at the loop and the call into it, it may close: that must be survived."""
    stream, buffer = make_stream()

    class Closing:
        def is_closed(self) -> bool:
            return False  # what the worker saw a moment ago

        def call_soon_threadsafe(self, *_: Any) -> None:
            raise RuntimeError("Event loop is closed")

    buffer._sleepers.append((Closing(), None))  # type: ignore[arg-type]
    feed(buffer, 2)
    assert [c.token for c in stream] == [0, 1]


def test_sleepers_that_were_cancelled_do_not_pile_up() -> None:
    """A reader that polls with a timeout leaves nothing behind for each time."""
    stream, buffer = make_stream()

    async def run() -> None:
        for _ in range(50):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream.__anext__(), 0.0001)

    asyncio.run(run())
    assert buffer._sleepers == []
