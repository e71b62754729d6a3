"""``EventStream``: the answer to a streamed request, server-sent events as tokens come.

All that is ready goes out in one write, a comment while nothing is. However it ends, the request's
rows are free within one step.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from mlx_spec.server.protocol.dialect import Event, StreamWriter
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.running import Running

T = TypeVar("T")
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent, for proxies
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Streams one request, which ends with it.

    Args:
        running: the request.
        events: what is written of it.
    """

    media_type = "text/event-stream"

    def __init__(self, running: Running, events: AsyncIterator[bytes]) -> None:
        self._running = running
        super().__init__(events, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()


async def spoken(
    running: Running, writer: StreamWriter, deadline: float, told: Callable[[Exception], Fault]
) -> AsyncIterator[bytes]:
    """A request's events as its dialect writes them.

    Args:
        running: the request.
        writer: makes events of it.
        deadline: when it must have ended, on the monotonic clock.
        told: makes a fault of an error, and counts it.
    """
    try:
        yield written(writer.start())
        async with aclosing(paced(running.bursts(), deadline)) as bursts:
            async for burst in bursts:
                if burst is None:
                    yield KEEPALIVE_COMMENT
                    continue
                events = [event for item in burst for event in writer.chunk(*item)]
                if events:
                    yield written(events)
        yield written(writer.end(await running.results()))
    except Exception as error:
        running.cancel()
        yield written(writer.fault(told(error)))


async def paced(items: AsyncGenerator[T, None], deadline: float) -> AsyncGenerator[T | None, None]:
    """The items as they come, and None while there has been none for a while.

    Raises:
        TimeoutError: it is later than ``deadline``, on the monotonic clock.
    """
    async with aclosing(items):
        coming = asyncio.ensure_future(anext(items))
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                done, _ = await asyncio.wait({coming}, timeout=min(KEEP_ALIVE, left))
                if done:
                    try:
                        item = coming.result()
                    except StopAsyncIteration:
                        return
                    coming = asyncio.ensure_future(anext(items))
                    yield item
                elif time.monotonic() < deadline:
                    yield None
        finally:
            coming.cancel()
            await asyncio.wait({coming})


def written(events: Iterable[Event]) -> bytes:
    """Events as they go over the wire."""
    return b"".join(format_sse_event(data_str=one.data, event=one.event) for one in events)


def event_of(value: object) -> bytes:
    """One event of a JSON value."""
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False))
