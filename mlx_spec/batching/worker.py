"""``Worker``: the thread that owns an engine, and with it all MLX work of a generator.

Others leave what they want done in its inbox, which it empties at each step boundary. Idle, it
waits for a full batch or for the timeout, whichever is first; busy, it lets newcomers in at every
step. However it ends, nobody is left waiting for it.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import mlx.core as mx

from mlx_spec.batching.engine import Engine
from mlx_spec.batching.generator_stats import GeneratorStats
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.batching.track import Track
from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.sequence import Sequence

Wish: TypeAlias = Callable[[Engine], None]


class Worker:
    """Runs one engine until it is closed.

    Args:
        make_engine: called in the worker's thread.

    Raises:
        whatever ``make_engine`` raises.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._inbox: list[Wish] = []
        self._changed = threading.Condition()
        self._streams: dict[TokenStream, Track | None] = {}
        self._readers: dict[Track, TokenStream] = {}  # the worker's own
        self._counts = {"finished": 0, "cancelled": 0}
        self._closing = False
        self._error: BaseException | None = None
        self._snapshot: GeneratorStats | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(make_engine,), name="mlx-spec", daemon=True
        )
        _OPEN.add(self)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    # --- for everybody ---

    @property
    def stats(self) -> GeneratorStats:
        """The engine as it stood at the last step boundary."""
        with self._changed:
            assert self._snapshot is not None
            return self._snapshot

    def tell(self, wish: Wish) -> None:
        """Have something done at the next step boundary.

        Raises:
            GeneratorClosed: nobody is there to do it.
        """
        with self._open():
            self._inbox.append(wish)

    def submit(self, stream: TokenStream, sequence: Sequence, priority: int) -> None:
        """Queue a sequence, whose chunks go to ``stream``.

        Raises:
            InvalidRequest: its name is in use.
            GeneratorClosed: nobody is there to run it.
        """

        def start(engine: Engine) -> None:
            try:
                track = engine.submit(sequence, priority=priority, request_id=stream.request_id)
            except InvalidRequest as error:
                self._streams.pop(stream, None)
                stream.fail(error)
            else:
                self._streams[stream] = track
                self._readers[track] = stream

        with self._open():
            if any(other.request_id == stream.request_id for other in self._streams):
                raise InvalidRequest(
                    f"[BatchedMLXGenerator.submit] request_id {stream.request_id!r} is in use"
                )
            self._streams[stream] = None
            self._inbox.append(start)

    def cancel(self, stream: TokenStream) -> None:
        """Stop a stream's request, unless it has ended."""

        def stop(engine: Engine) -> None:
            track = self._streams.get(stream)
            if track is not None and not track.done:
                engine.cancel(track)
                self._end(engine, [(stream, track)], "cancelled")

        if not self._closing and self._error is None:
            self.tell(stop)

    def drain(self, timeout: float | None) -> None:
        """Wait until no stream is left.

        Raises:
            TimeoutError: some were, after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._streams, timeout):
                raise TimeoutError(
                    f"[BatchedMLXGenerator.drain] {len(self._streams)} requests left"
                )

    def close(self) -> None:
        """Cancel what still runs and end the thread. Doing it twice does no harm."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Change what the worker looks at; it wakes up afterwards."""
        with self._changed:
            if self._error is not None:
                raise GeneratorClosed(
                    f"[BatchedMLXGenerator] the worker has failed: {self._error!r}"
                ) from self._error
            if self._closing:
                raise GeneratorClosed("[BatchedMLXGenerator] it was closed")
            yield
            self._changed.notify_all()

    # --- in the thread ---

    def _work(self, make_engine: Callable[[], Engine]) -> None:
        try:
            engine = make_engine()
            self._observe(engine)
            self._started.set()
            while self._attend(engine):
                self._step(engine)
            left = [(stream, track) for stream, track in self._streams.items() if track is not None]
            for _, track in left:
                engine.cancel(track)
            self._end(engine, left, "cancelled")
        except BaseException as error:
            self._error = error
        finally:
            # This thread's stream is its own: nobody else could wait for its work at exit.
            mx.synchronize()
            self._leave()

    def _attend(self, engine: Engine) -> bool:
        """Do what was asked for, wait while there is nothing to do; False when closing."""
        while True:
            with self._changed:
                wishes, self._inbox = self._inbox, []
                if self._closing:
                    return False
                if not wishes:
                    if engine.scheduler.due(engine.clock()):
                        return True
                    self._changed.wait(self._pause(engine))
                    continue
            for wish in wishes:
                wish(engine)

    def _pause(self, engine: Engine) -> float | None:
        """How long to sleep unless something happens; None for ever."""
        wake = engine.scheduler.wake_at()
        return None if wake is None else max(0.0, wake - engine.clock())

    def _step(self, engine: Engine) -> None:
        ended = []
        for track, chunks in engine.step():
            stream = self._readers[track]
            for chunk in chunks:
                track.give(chunk)
                stream.put(chunk)
            if track.done:
                ended.append((stream, track))
        self._end(engine, ended, "finished")

    def _end(self, engine: Engine, ended: list[tuple[TokenStream, Track]], how: str) -> None:
        """Count first, tell then: who has seen a request end sees it in the statistics."""
        self._counts[how] += len(ended)
        self._observe(engine)
        for stream, track in ended:
            del self._readers[track]
            stream.finish(track.result())
        with self._changed:
            for stream, _ in ended:
                self._streams.pop(stream, None)
            self._changed.notify_all()

    def _observe(self, engine: Engine) -> None:
        kv = engine.kv_usage()
        snapshot = GeneratorStats(
            waiting=engine.scheduler.backlog,
            running=len(engine.scheduler.running),
            finished=self._counts["finished"],
            cancelled=self._counts["cancelled"],
            preempted=engine.scheduler.preempted,
            batch_size=engine.scheduler.rows,
            cache_bytes=kv.total,
            generation=engine.stats(),
            kv=kv,
        )
        with self._changed:
            self._snapshot = snapshot

    def _leave(self) -> None:
        """Nobody may be left waiting for a worker that is gone."""
        error = self._error or GeneratorClosed("[BatchedMLXGenerator] it was closed")
        with self._changed:
            streams = list(self._streams)
            self._streams.clear()
            self._inbox.clear()
            self._changed.notify_all()
        for stream in streams:
            stream.fail(error)
        self._started.set()


# Those that were never closed must be, before the interpreter shuts down under their threads.
_OPEN: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in list(_OPEN):
        worker.close()
