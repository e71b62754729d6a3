"""``Worker``: the thread that owns an engine, and with it all MLX work of a generator.

Others leave commands in its inbox, which it empties at each step boundary. Idle, it waits for a
full batch or for the timeout, whichever is first; busy, it lets newcomers in at every step. However
it ends, nobody is left waiting for it.
"""

from __future__ import annotations

import atexit
import gc
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager, suppress
from typing import TypeAlias

import mlx.core as mx

from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.generator_stats import GeneratorStats, generator_stats
from mlx_spec.batching.memory import wired_memory
from mlx_spec.errors import GeneratorClosed, InvalidRequest, OutOfMemory, RankError
from mlx_spec.sequence import Sequence

Command: TypeAlias = Callable[[Engine], object]

# Seconds that who asks for statistics waits for a step boundary.
LONGEST_WAIT = 0.2


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
        self._requests: dict[str, Sequence] = {}  # by request_id, those that have not ended
        self._closing = False
        self._gone = self._lost = False
        self._error: BaseException | None = None
        self._engine: Engine | None = None
        self._stats: GeneratorStats | None = None
        self._answered = 0  # times that statistics were made for who asked
        self._asked = False
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

    def stats(self) -> GeneratorStats:
        """The engine at a step boundary, or as it stands where none comes soon.

        Nothing is kept up to date for it: a step costs the same whether anybody asks or not.
        """
        with self._changed:
            if threading.current_thread() is not self._thread:
                answered, self._asked = self._answered, True
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._gone or self._answered > answered, LONGEST_WAIT
                )
                if (self._gone or self._answered > answered) and self._stats is not None:
                    return self._stats
            engine, last = self._engine, self._stats
        if engine is not None:  # in the middle of a step
            # Plain numbers that nobody locks: a dictionary may change while it is looked at.
            for _ in range(3):
                with suppress(RuntimeError):
                    return generator_stats(engine)
        assert last is not None
        return last

    def post(self, command: Command) -> None:
        """Have something done at the next step boundary.

        Raises:
            GeneratorClosed: nobody is there to do it.
        """
        with self._open():
            self._inbox.append(command)

    def submit(self, requests: Seq[Sequence]) -> None:
        """Queue requests, whose chunks go to their sinks; if one is refused, all are.

        Raises:
            InvalidRequest: a name is in use.
            GeneratorClosed: nobody is there to run them.
        """

        def start(engine: Engine) -> None:
            try:
                engine.submit(*requests)
            except Exception as error:  # a refusal, or foreign code: it is these requests' alone
                # Whoever keeps the error must not keep this thread's frames, and so the engine.
                error.__traceback__ = None
                self._fail(requests, error)
                self._drop(requests)

        with self._open():
            for request in requests:
                other = self._requests.get(request.request_id)
                if other is not None and not other.ended:
                    raise InvalidRequest(
                        f"[BatchedMLXGenerator.submit] request_id {request.request_id!r} is in use"
                    )
            self._requests.update((request.request_id, request) for request in requests)
            self._inbox.append(start)

    def cancel(self, buffer: ChunkBuffer) -> None:
        """Stop a buffer's request, unless it has ended. Never waits, and never raises."""

        def stop(engine: Engine) -> None:
            request = self._requests.get(buffer.request_id)
            if request is not None and request.sink is buffer:
                engine.cancel(request)
                self._drop([request])

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
            if not self._changed.wait_for(lambda: not self._requests, timeout):
                raise TimeoutError(
                    f"[BatchedMLXGenerator.drain] {len(self._requests)} requests left"
                )

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closing or self._error is not None

    def stop(self) -> None:
        """Have the thread cancel what still runs and end; does not wait for it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """The same, and wait until it has ended. Doing it twice does no harm."""
        self.stop()
        if threading.current_thread() is not self._thread and not self._lost:
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
            self._engine = engine = make_engine()
            engine.stop_when(lambda: self._closing)
            engine.ranks.when_lost(_unless_gone(self))
            self._stats = generator_stats(engine)
            self._started.set()
            with wired_memory(engine.synchronize):
                engine.know_costs()
                while self._attend(engine):
                    self._drop(request for request in self._step(engine) if request.ended)
            for request in list(self._requests.values()):
                if request.submitted:  # else it is still in the inbox: ``_leave`` sees to it
                    engine.cancel(request)
            engine.settle()
        except BaseException as error:
            # Where a rank is lost, what fails here fails for that.
            self._error = self._error if self._lost else error
        finally:
            self._leave(engine)
            engine = None

    def _attend(self, engine: Engine) -> bool:
        """Do what was asked for, wait while there is nothing to do; False when closing."""
        while True:
            with self._changed:
                if self._closing:
                    return False
                commands, self._inbox = self._inbox, []
                if not commands:
                    if self._asked:
                        self._answer(generator_stats(engine))
                    if engine.scheduler.due(engine.clock()):
                        return True
                    self._changed.wait(self._pause(engine))
                    continue
            for command in commands:
                command(engine)

    def _step(self, engine: Engine) -> list[Sequence]:
        """One step; where it finds no memory, the engine begins anew and one request is told."""
        try:
            return engine.step()
        except OutOfMemory as error:
            # Ranks have taken the same step: one that leaves it alone is lost to the others.
            if engine.ranks.several:
                raise
            # What the step has described is held by its frames.
            for one in (error.__cause__, error):
                traceback.clear_frames(one.__traceback__ if one else None)
        with suppress(Exception):  # nobody wants what is left of it
            engine.synchronize()
        victim = engine.begin_anew()
        gc.collect()
        mx.clear_cache()
        return [victim]

    def _pause(self, engine: Engine) -> float | None:
        """How long to sleep unless something happens; None for ever."""
        wake = engine.scheduler.wake_at()
        return None if wake is None else max(0.0, wake - engine.clock())

    def _answer(self, stats: GeneratorStats) -> None:
        """Hand the statistics to all who wait for them; the lock is held."""
        self._stats, self._asked = stats, False
        self._answered += 1
        self._changed.notify_all()

    def _fail(self, requests: Iterable[Sequence], error: BaseException) -> None:
        for request in requests:
            if not request.ended:
                request.fail(repr(error))
            if request.sink is not None:
                request.sink.fail(error)

    def lose(self, words: str) -> None:
        """A part of the model is gone, which the thread may wait for without end; nobody else
        must."""
        with self._changed:
            if self._engine is not None:
                self._engine.lose(words)
            self._error = self._error or RankError(f"[BatchedMLXGenerator] {words}")
            self._closing = self._gone = self._lost = True
            left = list(self._requests.values())
            self._requests.clear()
            self._changed.notify_all()
        self._fail(left, self._error)

    def _drop(self, requests: Iterable[Sequence]) -> None:
        """Forget requests that have ended, and tell who waits for that."""
        ended = list(requests)
        if not ended:
            return
        with self._changed:
            for request in ended:
                # Its name may be another's by now.
                if self._requests.get(request.request_id) is request:
                    del self._requests[request.request_id]
            self._changed.notify_all()

    def _leave(self, engine: Engine | None) -> None:
        """Nobody may be left waiting for a worker that is gone, whatever the device says."""
        try:
            if engine is not None:
                with suppress(Exception):
                    self._stats = generator_stats(engine)
                engine.synchronize()
        except BaseException as late:
            self._error = self._error or late
        engine = None
        if self._error is not None:
            # What failed may have been for want of memory: its frames must not hold the engine.
            traceback.clear_frames(self._error.__traceback__)
        error = self._error or GeneratorClosed("[BatchedMLXGenerator] it was closed")
        with self._changed:
            self._closing = self._gone = True
            self._engine = None
            left = list(self._requests.values())
            self._requests.clear()
            self._inbox.clear()
            self._changed.notify_all()
        self._fail(left, error)
        self._started.set()


def _unless_gone(worker: Worker) -> Callable[[str], None]:
    """Tells a worker that a rank is lost, if there is that worker by then."""
    known = weakref.ref(worker)

    def tell(words: str) -> None:
        found = known()
        if found is not None:
            found.lose(words)

    return tell


# Those that were never closed must be, before the interpreter shuts down under their threads.
_OPEN: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in list(_OPEN):
        worker.close()
