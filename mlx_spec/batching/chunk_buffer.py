"""``ChunkBuffer``: one request's chunks and its end, written by the worker, read by anybody.

The worker puts, finishes and fails; a ``TokenStream`` is what readers see of it. It may be read
from several threads and event loops at once. An end of any kind reaches every waiting reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

from mlx_spec.results import GenerationChunk, GenerationResult


class ChunkBuffer:
    """What has been generated of one request and was not read yet.

    Args:
        request_id: the request's name.
        cancel: called with this buffer when nobody wants more.
        owner: kept alive until the end, as ``cancel`` is: who still reads holds nothing else.

    Attributes:
        error: why the request failed; None while it has not.
        outcome: the result, once the request has ended otherwise.
    """

    def __init__(
        self, request_id: str, cancel: Callable[[ChunkBuffer], None], owner: object = None
    ) -> None:
        self.request_id = request_id
        self.outcome: GenerationResult | None = None
        self.error: BaseException | None = None
        self._cancel: Callable[[ChunkBuffer], None] | None = cancel
        self._owner = owner
        self._chunks: deque[GenerationChunk] = deque()
        self._changed = threading.Condition()
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._readers = 0  # that wait for the end

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def done(self) -> bool:
        """Whether no further chunk will be put."""
        return self.outcome is not None or self.error is not None

    @property
    def readable(self) -> bool:
        """Whether :meth:`take` has an answer."""
        return bool(self._chunks) or self.done

    # --- the worker's side ---

    def put(self, chunks: Seq[GenerationChunk], result: GenerationResult | None = None) -> None:
        """Hand over all chunks of a step, and the end if this is it; readers wake once."""
        self._write(chunks, result, None)

    def fail(self, error: BaseException) -> None:
        """No chunk follows, for this reason; only the first end counts."""
        self._write((), None, error)

    def _write(
        self,
        chunks: Seq[GenerationChunk],
        result: GenerationResult | None,
        error: BaseException | None,
    ) -> None:
        held: object = None
        with self._changed:
            self._chunks.extend(chunks)
            if result is not None or error is not None:
                if not self.done:
                    self.outcome, self.error = result, error
                held = self._owner, self._cancel
                self._owner = self._cancel = None
            self._wake()
        del held  # outside the lock: it may be the last reference

    def _wake(self) -> None:
        self._changed.notify_all()
        sleepers, self._sleepers = self._sleepers, []
        for loop, future in sleepers:
            # A loop that is closed (it may be at any moment) has nobody waiting in it any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future)

    # --- the readers' side ---

    def cancel(self) -> None:
        """Nobody wants more; a request that has ended stays as it is."""
        cancel = self._cancel
        if cancel is not None and not self.done:
            cancel(self)

    def take(self) -> GenerationChunk | None:
        """The next chunk; None where there is none, now or ever.

        Raises:
            the request's error, once everything before it was taken.
        """
        with self._changed:
            if self._chunks:
                return self._chunks.popleft()
            if self.error is not None:
                raise self.error
            return None

    def take_all(self) -> list[GenerationChunk]:
        """All chunks that are there, as :meth:`take` has them; empty where there is none."""
        with self._changed:
            if self._chunks:
                chunks = list(self._chunks)
                self._chunks.clear()
                return chunks
            if self.error is not None:
                raise self.error
            return []

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Hold this thread up until ``ready``; False where ``timeout`` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(ready, timeout)

    async def until(self, ready: Callable[[], bool]) -> None:
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

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Count a reader that waits for the end."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for the end."""
        return self._readers > 0


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
