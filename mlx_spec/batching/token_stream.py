"""``TokenStream``: one request as its reader holds it.

It can be iterated (``for`` and ``async for``), awaited, waited for and cancelled, from any thread
or event loop.

**A request runs as long as somebody wants it.** It is cancelled, and its row is free for the next
one, when its stream

- is cancelled or closed: ``cancel()``, ``close()``, ``aclose()``, the end of a ``with`` or ``async
  with`` block;
- is dropped: nobody holds it any more, as after ``break`` in ``for chunk in generator.submit(...)``
  (a stream that a variable still names goes on, and may be read on);
- was awaited and given up: the waiting task was cancelled (``asyncio.wait_for`` and
  ``asyncio.timeout`` do that) and nobody else waits for the end. ``asyncio.shield`` keeps it.

``result(timeout)`` and a timeout on a single chunk give nothing up: ask again.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.closing import Closing
from mlx_spec.display import html_table
from mlx_spec.results import GenerationChunk, GenerationResult


class TokenStream(Iterator[GenerationChunk], AsyncIterator[GenerationChunk], Closing):
    """Chunks of one request as they come; what ends it early is written in the module's docstring.

    A request that fails on its own ends the iteration like any other; ``result()`` then says
    ``finish_reason="error"`` and why. The end of the generator itself is raised in every reader.

    Args:
        buffer: what the worker writes.
    """

    def __init__(self, buffer: ChunkBuffer) -> None:
        self._buffer = buffer
        weakref.finalize(self, buffer.cancel).atexit = False

    @property
    def request_id(self) -> str:
        """The request's name."""
        return self._buffer.request_id

    @property
    def done(self) -> bool:
        """Whether the request has ended: no chunk follows but those not read yet."""
        return self._buffer.done

    def cancel(self) -> None:
        """Stop the request; what was generated until then stays readable."""
        self._buffer.cancel()

    def close(self) -> None:
        """The same as :meth:`cancel`; a request that has ended stays as it is."""
        self.cancel()

    async def aclose(self) -> None:
        """The same, for ``contextlib.aclosing``."""
        self.cancel()

    def __next__(self) -> GenerationChunk:
        while True:
            self._buffer.wait(lambda: self._buffer.readable)
            done = self._buffer.done
            chunk = self._buffer.take()
            if chunk is not None:
                return chunk
            if done:
                raise StopIteration

    async def __anext__(self) -> GenerationChunk:
        while True:
            await self._buffer.until(lambda: self._buffer.readable)
            done = self._buffer.done
            chunk = self._buffer.take()
            if chunk is not None:
                return chunk
            if done:
                raise StopAsyncIteration
            # Another reader was faster.

    async def fresh(self) -> list[GenerationChunk]:
        """All chunks that have come and were not read; waits for one, and is empty at the end."""
        while True:
            await self._buffer.until(lambda: self._buffer.readable)
            done = self._buffer.done
            chunks = self._buffer.take_all()
            if chunks or done:
                return chunks

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end of the request.

        Raises:
            TimeoutError: it did not end within ``timeout`` seconds; it goes on, ask again.
            InvalidRequest: it can never be served.
            GeneratorClosed: the generator was closed before it was served.
        """
        with self._buffer.reading():
            if not self._buffer.wait(lambda: self._buffer.done, timeout):
                raise TimeoutError(f"[TokenStream.result] {self.request_id}: {timeout} s passed")
        return self._outcome()

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return self._wait().__await__()

    async def _wait(self) -> GenerationResult:
        try:
            with self._buffer.reading():
                await self._buffer.until(lambda: self._buffer.done)
        except asyncio.CancelledError:
            if not self._buffer.awaited:
                self.cancel()
            raise
        return self._outcome()

    def _outcome(self) -> GenerationResult:
        if self._buffer.error is not None:
            raise self._buffer.error
        assert self._buffer.outcome is not None
        return self._buffer.outcome

    def __repr__(self) -> str:
        return f"<TokenStream {self.request_id}: {self._state()}>"

    def _repr_html_(self) -> str:
        head = html_table([("request", self.request_id), ("state", self._state())])
        outcome = self._buffer.outcome
        return head if outcome is None else f"{head}{outcome._repr_html_()}"

    def _state(self) -> str:
        if self._buffer.error is not None:
            return f"failed: {self._buffer.error!r}"
        outcome = self._buffer.outcome
        state = "running" if outcome is None else outcome.finish_reason
        return f"{state}, {len(self._buffer)} chunks not read yet"


def deadline(timeout: float | None) -> Callable[[], float | None]:
    """Seconds left of ``timeout`` from now on; None for ever."""
    end = None if timeout is None else time.monotonic() + timeout
    return lambda: None if end is None else max(0.0, end - time.monotonic())
