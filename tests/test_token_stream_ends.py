"""``TokenStream``: how it ends, by whom, and what it tells of itself."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.results import GenerationChunk
from tests.test_token_stream import LONG, chunk, feed, make_stream, result


def test_it_says_how_it_stands() -> None:
    stream, buffer = make_stream()
    buffer.put([chunk(0)])
    assert repr(stream) == "<TokenStream r1: running, 1 chunks not read yet>"
    next(stream)
    buffer.put([], result())
    assert repr(stream) == "<TokenStream r1: stop, 0 chunks not read yet>"


def test_who_was_overtaken_by_another_reader_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between waking up and looking, the chunk may be gone; that is no end."""
    stream, buffer = make_stream()
    take, overtaken = buffer.take, [True, True]
    monkeypatch.setattr(buffer, "take", lambda: None if overtaken and overtaken.pop() else take())
    feed(buffer, 2)
    buffer.outcome = None  # it still runs

    async def read() -> GenerationChunk:
        return await stream.__anext__()

    assert asyncio.run(read()).token == 0
    overtaken.append(True)
    assert next(stream).token == 1


def test_dropped_it_is_cancelled_once_and_ended_it_is_not() -> None:
    cancelled: list[ChunkBuffer] = []
    stream, buffer = make_stream(cancelled.append)
    for _ in iter(stream) if buffer.readable else ():
        break
    del stream
    assert cancelled == [buffer]
    ended, buffer = make_stream(cancelled.append)
    feed(buffer, 1)
    ended.cancel()
    del ended
    assert len(cancelled) == 1


@pytest.mark.parametrize("ending", ["close", "with", "async with", "aclose"])
def test_every_way_to_close_it_cancels(ending: str) -> None:
    cancelled: list[ChunkBuffer] = []
    stream, buffer = make_stream(cancelled.append)

    async def run() -> None:
        if ending == "aclose":
            await stream.aclose()
        else:
            async with stream:
                pass

    if ending == "close":
        stream.close()
    elif ending == "with":
        with stream:
            pass
    else:
        asyncio.run(run())
    assert cancelled == [buffer]


def test_awaited_and_given_up_it_is_cancelled_unless_another_waits() -> None:
    cancelled: list[ChunkBuffer] = []
    stream, buffer = make_stream(cancelled.append)

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream, 0.001)

    async def beside_another() -> None:
        other = asyncio.ensure_future(stream)
        await asyncio.sleep(0)
        await give_up()
        assert not cancelled
        buffer.put([chunk(0)])
        feed(buffer, 0)
        await asyncio.wait_for(other, LONG)

    async def beside_a_shield() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting := asyncio.ensure_future(stream)), 0.001)
        assert not cancelled
        feed(buffer, 0)
        await asyncio.wait_for(waiting, LONG)

    asyncio.run(beside_another())
    stream, buffer = make_stream(cancelled.append)
    asyncio.run(beside_a_shield())
    stream, buffer = make_stream(cancelled.append)
    asyncio.run(give_up())
    assert cancelled == [buffer]


def test_what_it_kept_alive_goes_with_the_end() -> None:
    class Owner:
        pass

    owner = Owner()
    buffer = ChunkBuffer("r1", lambda _: None, owner)
    stream = TokenStream(buffer)
    alive = weakref.ref(owner)
    del owner
    assert alive() is not None
    buffer.fail(RuntimeError("planted"))
    assert alive() is None
    del stream
