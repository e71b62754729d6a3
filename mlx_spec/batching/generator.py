"""``BatchedMLXGenerator``: submit from anywhere, one thread decodes, requests come and go.

The worker thread owns all MLX work. Others hold streams, and leave what they want done in an
inbox, which the worker empties at each step boundary. Idle, it waits for a full batch or for the
timeout, whichever is first; busy, it lets newcomers in at every step.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import mlx.core as mx

from mlx_spec.batching.engine import Engine
from mlx_spec.batching.prompts import DraftModel, Prompt, drafting_model, make_sequences
from mlx_spec.batching.token_stream import TokenStream, deadline
from mlx_spec.batching.track import Track
from mlx_spec.cache.usage import KVUsage
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.display import Facts, html_table, lines, rich_table, stats_facts
from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.events import Listener
from mlx_spec.results import GenerationResult, GenerationStats


@dataclass(frozen=True)
class GeneratorStats:
    """The generator at one moment.

    Attributes:
        waiting, running: requests.
        finished, cancelled: requests, over all time.
        preempted: times that a running request had to wait again.
        batch_size: rows.
        cache_bytes: K/V held now, suspended rows and prefix cache included.
        generation: figures over all steps.
        kv: the K/V memory in slots, blocks and bytes.
    """

    waiting: int
    running: int
    finished: int
    cancelled: int
    preempted: int
    batch_size: int
    cache_bytes: int
    generation: GenerationStats
    kv: KVUsage = field(default_factory=KVUsage)

    @property
    def facts(self) -> Facts:
        """What a notebook or terminal shows: (label, text)."""
        return [
            ("requests", f"{self.running:,} running, {self.waiting:,} waiting"),
            ("ended", f"{self.finished:,} finished, {self.cancelled:,} cancelled"),
            ("preempted", f"{self.preempted:,}"),
            ("batch size", f"{self.batch_size:,}"),
            ("K/V held", f"{self.cache_bytes / 1e6:,.1f} MB"),
            *kv_facts(self.kv),
            *stats_facts(self.generation),
        ]

    def __str__(self) -> str:
        return lines(self.facts)

    def __rich__(self) -> Any:
        return rich_table(self.facts)

    def _repr_html_(self) -> str:
        return html_table(self.facts)


def kv_facts(kv: KVUsage) -> Facts:
    """What there is to say of slots, once there are any."""
    if not kv.slots:
        return []
    return [
        ("K/V slots", f"{kv.slots_used:,} of {kv.slots:,} used, {kv.positions:,} tokens each"),
        ("K/V blocks", f"{kv.blocks_used:,} of {kv.blocks:,} used"),
        ("K/V unused", f"{kv.waste:.0%} of the slots' {kv.bytes_held / 1e6:,.1f} MB"),
    ]


class BatchedMLXGenerator:
    """Continuous batching with speculation; a context manager.

    Example::

        with BatchedMLXGenerator(model, tokenizer, draft_model=draft) as generator:
            streams = [generator.submit(prompt) for prompt in prompts]
            for chunk in streams[0]:
                print(chunk.text, end="")
            texts = [stream.result().text for stream in streams]

    Args:
        model: the target, as ``load`` returned it.
        tokenizer: its tokenizer; None if all prompts are token ids.
        draft_model: a smaller model that guesses ahead, or its (model, tokenizer) pair.
        batching: rows, timeout, memory, prefix cache, priorities.
        speculation: how far to guess.
        listeners: told what happens, in the worker's thread (``events``, ``metrics``).

    Raises:
        TokenizerMismatch, UnsupportedModel, CapacityError: as ``stream_batch_generate``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        draft_model: DraftModel = None,
        batching: BatchingConfig = BatchingConfig(),  # noqa: B008 (frozen)
        speculation: SpeculationConfig = SpeculationConfig(),  # noqa: B008
        listeners: Seq[Listener] = (),
    ) -> None:
        self._model, self._tokenizer, self._batching = model, tokenizer, batching
        draft = drafting_model(draft_model, tokenizer)
        _settle(model, draft)
        self._make_engine: Callable[[], Engine] = lambda: Engine(
            model,
            tokenizer,
            draft_model=draft,
            speculation=speculation,
            batching=batching,
            listeners=listeners,
        )
        self._inbox: list[Callable[[Engine], None]] = []
        self._changed = threading.Condition()
        self._streams: dict[TokenStream, Track | None] = {}
        self._numbers = itertools.count()
        self._counts = {"finished": 0, "cancelled": 0}
        self._closing = False
        self._error: BaseException | None = None
        self._snapshot: GeneratorStats | None = None
        self._worker = threading.Thread(target=self._work, name="mlx-spec", daemon=True)
        self._started = threading.Event()
        _OPEN.add(self)
        self._worker.start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    # --- for everybody ---

    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        priority: int = 0,
        request_id: str | None = None,
    ) -> TokenStream:
        """Queue one request; returns at once.

        Args:
            prompt: a text, token ids or chat messages.
            sampling: how to choose tokens and when to stop.
            priority: higher goes first.
            request_id: a name for errors and logs.

        Raises:
            InvalidRequest: a bad prompt, or a ``request_id`` that is in use.
            GeneratorClosed: the generator was closed, or its worker has failed.
        """
        number = next(self._numbers)
        (sequence,) = make_sequences(
            self._model,
            self._tokenizer,
            [prompt],
            sampling or SamplingParams(),
            self._batching.max_seq_len,
        )
        sequence.index = number
        stream = TokenStream(request_id or f"request-{number}", self._cancel)

        def start(engine: Engine) -> None:
            try:
                track = engine.submit(sequence, priority=priority, request_id=stream.request_id)
            except InvalidRequest as error:
                self._streams.pop(stream, None)
                stream.fail(error)
            else:
                self._streams[stream] = track

        with self._changed:
            self._check_open()
            if any(other.request_id == stream.request_id for other in self._streams):
                raise InvalidRequest(
                    f"[BatchedMLXGenerator.submit] request_id {stream.request_id!r} is in use"
                )
            self._streams[stream] = None
            self._inbox.append(start)
            self._changed.notify_all()
        return stream

    def generate(
        self,
        prompts: Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[GenerationResult]:
        """Submit all prompts and wait for their results, in order."""
        left = deadline(timeout)
        return [stream.result(left()) for stream in self._submit_all(prompts, sampling)]

    async def agenerate(
        self,
        prompts: Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
    ) -> list[GenerationResult]:
        """The same from a coroutine."""
        return [await stream for stream in self._submit_all(prompts, sampling)]

    def stats(self) -> GeneratorStats:
        """The generator as it stood at the last step boundary."""
        with self._changed:
            assert self._snapshot is not None
            return self._snapshot

    def set_batch_size(self, rows: int) -> None:
        """Change the number of rows; requests beyond it wait and go on later, unharmed."""
        if not isinstance(rows, int) or rows < 1:
            raise InvalidRequest(
                f"[BatchedMLXGenerator.set_batch_size] rows={rows!r}, expected an integer >= 1"
            )
        self._tell(lambda engine: engine.set_batch_size(rows))

    def drain(self, timeout: float | None = None) -> None:
        """Wait until every submitted request has ended.

        Raises:
            TimeoutError: some had not, after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._streams, timeout):
                raise TimeoutError(
                    f"[BatchedMLXGenerator.drain] {len(self._streams)} requests left"
                )

    def close(self) -> None:
        """Cancel what still runs and end the worker. Doing it twice does no harm."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()
            _outlive(self._worker)

    def __enter__(self) -> BatchedMLXGenerator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit_all(
        self,
        prompts: Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None,
    ) -> list[TokenStream]:
        shared = sampling is None or isinstance(sampling, SamplingParams)
        options = [sampling] * len(prompts) if shared else list(sampling)  # type: ignore[arg-type]
        if len(options) != len(prompts):
            raise InvalidRequest(
                f"[BatchedMLXGenerator.generate] {len(options)} sampling options for "
                f"{len(prompts)} prompts"
            )
        return [
            self.submit(prompt, option)  # type: ignore[arg-type]
            for prompt, option in zip(prompts, options, strict=True)
        ]

    def _cancel(self, stream: TokenStream) -> None:
        def stop(engine: Engine) -> None:
            track = self._streams.get(stream)
            if track is not None and not track.done:
                engine.cancel(track)
                self._end(engine, [(stream, track)], "cancelled")

        if not self._closing and self._error is None:
            self._tell(stop)

    def _tell(self, wish: Callable[[Engine], None]) -> None:
        with self._changed:
            self._check_open()
            self._inbox.append(wish)
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._error is not None:
            raise GeneratorClosed(
                f"[BatchedMLXGenerator] the worker has failed: {self._error!r}"
            ) from self._error
        if self._closing:
            raise GeneratorClosed("[BatchedMLXGenerator] it was closed")

    # --- the worker ---

    def _work(self) -> None:
        try:
            engine = self._make_engine()
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
        streams = {track: stream for stream, track in self._streams.items()}
        ended = []
        for track, chunks in engine.step():
            stream = streams[track]
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


def _outlive(thread: threading.Thread) -> None:
    """Wait until a joined thread is gone for the operating system too.

    ``join`` returns before the thread's C++ destructors have run; MLX's need the interpreter, and
    one that is shutting down by then ends the process with an abort.
    """
    task = f"/proc/self/task/{thread.native_id}"
    if not os.path.isdir("/proc/self/task"):
        time.sleep(0.05)  # no such list here (macOS); they take about a millisecond
        return
    end = time.monotonic() + 1.0
    while os.path.exists(task) and time.monotonic() < end:
        time.sleep(0.001)


# Generators that were never closed must be, before the interpreter shuts down under their threads.
_OPEN: weakref.WeakSet[BatchedMLXGenerator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for generator in list(_OPEN):
        generator.close()


def _settle(*models: Any) -> None:
    """Compute what the models left lazy (weights, rope frequencies).

    An array that was not computed yet belongs to the stream of the thread that made it, and the
    worker could not use it. One token through each model computes whatever a pass reads.
    """
    for model in models:
        if model is not None:
            mx.eval(model.parameters(), model(mx.zeros((1, 1), mx.int32)))
