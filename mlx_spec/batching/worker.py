"""``Worker``: the thread that owns an engine, and with it all MLX work of a generator.

Others leave what they want done in its inbox, which it empties at each step boundary. Idle, it
waits for a full batch or for the timeout, whichever is first; busy, it lets newcomers in at every
step. However it ends, nobody is left waiting for it.
"""

from __future__ import annotations

import atexit
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import TypeAlias

from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.generator_stats import GeneratorStats
from mlx_spec.batching.memory import wired_memory
from mlx_spec.batching.track import Track
from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.sequence import Sequence

Command: TypeAlias = Callable[[Engine], object]


class Worker:
    """Runs one engine until it is closed.

    Args:
        make_engine: called in the worker's thread.

    Raises:
        whatever ``make_engine`` raises.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._inbox: list[Command] = []
        self._changed = threading.Condition()
        self._buffers: dict[str, ChunkBuffer] = {}  # by request_id, those that have not ended
        self._tracks: dict[ChunkBuffer, Track] = {}  # the worker's own, as is the next one
        self._readers: dict[Track, ChunkBuffer] = {}
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

    def post(self, command: Command) -> None:
        """Have something done at the next step boundary.

        Raises:
            GeneratorClosed: nobody is there to do it.
        """
        with self._open():
            self._inbox.append(command)

    def submit(self, requests: Seq[tuple[ChunkBuffer, Sequence]], priority: int = 0) -> None:
        """Queue sequences, whose chunks go to their buffers; if one is refused, all are.

        Raises:
            InvalidRequest: a name is in use.
            GeneratorClosed: nobody is there to run them.
        """
        buffers = [buffer for buffer, _ in requests]

        def start(engine: Engine) -> None:
            tracks: list[Track] = []
            try:
                for buffer, sequence in requests:
                    tracks.append(
                        engine.submit(sequence, priority=priority, request_id=buffer.request_id)
                    )
            except Exception as error:  # a refusal, or foreign code: it is these requests' alone
                for track in tracks:
                    engine.cancel(track)
                # Whoever keeps the error must not keep this thread's frames, and so the engine.
                error.__traceback__ = None
                for buffer in buffers:
                    buffer.fail(error)
                self._drop(buffers)
            else:
                self._tracks.update(zip(buffers, tracks, strict=True))
                self._readers.update(zip(tracks, buffers, strict=True))

        with self._open():
            for buffer in buffers:
                other = self._buffers.get(buffer.request_id)
                if other is not None and not other.done:
                    raise InvalidRequest(
                        f"[BatchedMLXGenerator.submit] request_id {buffer.request_id!r} is in use"
                    )
            self._buffers.update((buffer.request_id, buffer) for buffer in buffers)
            self._inbox.append(start)

    def cancel(self, buffer: ChunkBuffer) -> None:
        """Stop a buffer's request, unless it has ended. Never waits, and never raises."""

        def stop(engine: Engine) -> None:
            track = self._tracks.get(buffer)
            if track is not None:
                engine.cancel(track)
                self._end(engine, [(buffer, track)], "cancelled")

        with self._changed:
            if not self._closing and self._error is None:
                self._inbox.append(stop)
                self._changed.notify_all()

    def drain(self, timeout: float | None) -> None:
        """Wait until no request is left.

        Raises:
            TimeoutError: some were, after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._buffers, timeout):
                raise TimeoutError(
                    f"[BatchedMLXGenerator.drain] {len(self._buffers)} requests left"
                )

    def stop(self) -> None:
        """Have the thread cancel what still runs and end; does not wait for it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """The same, and wait until it has ended. Doing it twice does no harm."""
        self.stop()
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
        engine: Engine | None = None
        try:
            engine = make_engine()
            engine.decoder.stop_when(lambda: self._closing)
            self._observe(engine)
            self._started.set()
            with wired_memory(engine.decoder.device.synchronize):
                while self._attend(engine):
                    self._step(engine)
            left = list(self._tracks.items())
            for _, track in left:
                engine.cancel(track)
            self._end(engine, left, "cancelled")
        except BaseException as error:
            self._error = error
        finally:
            self._leave(engine)
            engine = None

    def _attend(self, engine: Engine) -> bool:
        """Do what was asked for, wait while there is nothing to do; False when closing."""
        while True:
            with self._changed:
                commands, self._inbox = self._inbox, []
                if self._closing:
                    return False
                if not commands:
                    if engine.scheduler.due(engine.clock()):
                        return True
                    self._changed.wait(self._pause(engine))
                    continue
            for command in commands:
                command(engine)

    def _pause(self, engine: Engine) -> float | None:
        """How long to sleep unless something happens; None for ever."""
        wake = engine.scheduler.wake_at()
        return None if wake is None else max(0.0, wake - engine.clock())

    def _step(self, engine: Engine) -> None:
        ended = []
        for track, chunks in engine.step():
            buffer = self._readers[track]
            for chunk in chunks:
                track.give(chunk)
                buffer.put(chunk)
            if track.done:
                ended.append((buffer, track))
        self._end(engine, ended, "finished")

    def _end(self, engine: Engine, ended: list[tuple[ChunkBuffer, Track]], how: str) -> None:
        """Count first, tell then: who has seen a request end sees it in the statistics."""
        self._counts[how] += len(ended)
        self._observe(engine)
        for buffer, track in ended:
            del self._readers[track], self._tracks[buffer]
            buffer.finish(track.result())
        self._drop([buffer for buffer, _ in ended])

    def _drop(self, buffers: Iterable[ChunkBuffer]) -> None:
        """Forget requests that have ended, and tell who waits for that."""
        with self._changed:
            for buffer in buffers:
                # Its name may be another's by now.
                if self._buffers.get(buffer.request_id) is buffer:
                    del self._buffers[buffer.request_id]
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

    def _leave(self, engine: Engine | None) -> None:
        """Nobody may be left waiting for a worker that is gone, whatever the device says."""
        try:
            if engine is not None:
                engine.decoder.device.synchronize()
        except BaseException as late:
            self._error = self._error or late
        engine = None
        if self._error is not None:
            # What failed may have been for want of memory: its frames must not hold the engine.
            traceback.clear_frames(self._error.__traceback__)
        error = self._error or GeneratorClosed("[BatchedMLXGenerator] it was closed")
        with self._changed:
            self._closing = True
            buffers = list(self._buffers.values())
            self._buffers.clear()
            self._inbox.clear()
            self._changed.notify_all()
        self._tracks.clear()
        self._readers.clear()
        for buffer in buffers:
            buffer.fail(error)
        self._started.set()


# Those that were never closed must be, before the interpreter shuts down under their threads.
_OPEN: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in list(_OPEN):
        worker.close()
