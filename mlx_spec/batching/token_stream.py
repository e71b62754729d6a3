"""``TokenStream``: one request's chunks, from the worker's thread to whoever asked for them.

It can be iterated (``for`` and ``async for``), awaited, waited for and cancelled, from any thread
or event loop. An error of the request, or the end of the generator, reaches every waiting reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from mlx_spec.display import stream_html
from mlx_spec.results import GenerationChunk, GenerationResult


class TokenStream(Iterator[GenerationChunk], AsyncIterator[GenerationChunk]):
    """Chunks of one request as they come.

    Args:
        request_id: the request's name.
        cancel: called when the reader wants no more.
    """

    def __init__(self, request_id: str, cancel: Callable[[TokenStream], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._chunks: deque[GenerationChunk] = deque()
        self._result: GenerationResult | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # --- the worker's side ---

    def put(self, chunk: GenerationChunk) -> None:
        """Hand a chunk over."""
        with self._changed:
            self._chunks.append(chunk)
            self._wake()

    def finish(self, result: GenerationResult) -> None:
        """No chunk follows; only the first end counts."""
        with self._changed:
            if not self.done:
                self._result = result
            self._wake()

    def fail(self, error: BaseException) -> None:
        """No chunk follows, for this reason; only the first end counts."""
        with self._changed:
            if not self.done:
                self._error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        sleepers, self._sleepers = self._sleepers, []
        for loop, future in sleepers:
            # A loop that is closed (it may be at any moment) has nobody waiting in it any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future)

    # --- the reader's side ---

    @property
    def done(self) -> bool:
        """Whether no further chunk will be put."""
        return self._result is not None or self._error is not None

    def cancel(self) -> None:
        """Stop the request; what was generated until then stays readable."""
        self._cancel(self)

    def __next__(self) -> GenerationChunk:
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self.done)
            if self._chunks:
                return self._chunks.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    async def __anext__(self) -> GenerationChunk:
        await self._until(lambda: bool(self._chunks) or self.done)
        with self._changed:
            if self._chunks:
                return self._chunks.popleft()
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end of the request.

        Raises:
            TimeoutError: it did not end within ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"[TokenStream.result] {self.request_id}: {timeout} s passed")
        return self._outcome()

    def __repr__(self) -> str:
        return f"<TokenStream {self.request_id}: {self._state()}>"

    def _repr_html_(self) -> str:
        return stream_html(self.request_id, self._state(), self._result)

    def _state(self) -> str:
        if self._error is not None:
            return f"failed: {self._error!r}"
        state = "running" if self._result is None else self._result.finish_reason
        return f"{state}, {len(self._chunks)} chunks not read yet"

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return self._wait().__await__()

    async def _wait(self) -> GenerationResult:
        await self._until(lambda: self.done)
        return self._outcome()

    def _outcome(self) -> GenerationResult:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Wait in the running event loop without holding it up."""
        while True:
            with self._changed:
                if ready():
                    return
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._sleepers.append((loop, future))
            try:
                await future
            finally:
                # A reader that gave up leaves nothing behind; one that was woken is out already.
                with self._changed, contextlib.suppress(ValueError):
                    self._sleepers.remove((loop, future))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def deadline(timeout: float | None) -> Callable[[], float | None]:
    """Seconds left of ``timeout`` from now on; None for ever."""
    end = None if timeout is None else time.monotonic() + timeout
    return lambda: None if end is None else max(0.0, end - time.monotonic())
