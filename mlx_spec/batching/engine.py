"""``Engine``: scheduler, decoder and texts under one ``step()``.

Everything that decodes goes through it: a closed list of prompts (``BatchStream``) steps it in
the caller's thread, ``BatchedMLXGenerator`` in a thread of its own. It owns no thread and no lock.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_spec.batching.memory import (
    LEDGER,
    STEP_COPIES,
    memory_room,
)
from mlx_spec.batching.memory import TokenBudget as TokenBudget
from mlx_spec.batching.reporter import EventReporter
from mlx_spec.batching.scheduler import Request, Scheduler
from mlx_spec.batching.track import Track
from mlx_spec.cache.budget import KVBudget
from mlx_spec.cache.pool import SlotSize
from mlx_spec.cache.usage import KVUsage
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.flight import StepOutput
from mlx_spec.events import Listener
from mlx_spec.results import GenerationChunk, GenerationStats
from mlx_spec.sequence import Sequence

# As mlx-lm does: give unused buffers back now and then, since lengths and so sizes change.
CLEAR_CACHE_EVERY = 256
# Most of the memory beside the models that repeated beginnings may take from running rows.
PREFIX_SHARE = 0.25


class Engine:
    """Runs requests over the rows of one decoder.

    Args:
        model, draft_model: target and draft; the draft may be None.
        tokenizer: None for tokens without text.
        speculation, batching: as everywhere.
        clock: seconds; for tests.
        listeners: told what happens, at step boundaries (``events``).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        draft_model: Any = None,
        speculation: SpeculationConfig | None = None,
        batching: BatchingConfig | None = None,
        clock: Callable[[], float] = time.perf_counter,
        listeners: Seq[Listener] = (),
    ) -> None:
        self.speculation = speculation or SpeculationConfig()
        batching = batching or BatchingConfig()
        room = memory_room(batching.memory_limit, model, draft_model)
        self.batching = _with_prefix_share(batching, room, models=1 if draft_model is None else 2)
        self.clock = clock
        self.decoder = SpeculativeDecoder(
            model,
            draft_model=draft_model,
            speculation=self.speculation,
            batching=self.batching,
            clock=clock,
        )
        self._tokenizer = tokenizer
        room -= self.batching.prefix_cache_bytes * len(self.decoder.runners)
        kv = KVBudget(
            self.decoder.bytes_per_token, room, self.batching.block_size, self._step_bytes
        )
        self.budget = TokenBudget(kv, self.batching.max_batch_tokens, weakref.ref(self))
        self.scheduler = Scheduler(
            self.batching.batch_size,
            self.batching.batch_timeout,
            self.budget,
            preemption=self.batching.enable_preemption,
            aging=self.batching.aging,
        )
        self._tracks: dict[Sequence, Track] = {}
        self._by_request: dict[Request, Track] = {}
        self._reporter = EventReporter(listeners, clock)
        if self._reporter:
            models = {"target": model, "draft": draft_model}
            kv_limit = self.budget.kv.limit
            self._reporter.started(models, self.batching, self.speculation, kv_limit)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._tracks)

    def submit(
        self, sequence: Sequence, *, priority: int = 0, request_id: str | None = None
    ) -> Track:
        """Queue a sequence.

        Raises:
            InvalidRequest: it can never fit, or holds a token outside the vocabulary.
        """
        tokens = len(sequence.prompt) + sequence.max_new_tokens + self.decoder.margin
        request = Request(request_id or f"prompt-{sequence.index}", tokens, priority, self.clock())
        track = Track(sequence, request, self._tokenizer)
        try:
            self.decoder.check(sequence)
            self.scheduler.submit(request)
        except Exception as error:
            self._reporter.failed("submit", repr(error), request.request_id)
            raise
        self._tracks[sequence] = self._by_request[request] = track
        if self._reporter:
            self._reporter.submitted(track)
        return track

    def cancel(self, track: Track) -> None:
        """Stop a request wherever it stands; a finished one stays as it is."""
        if track.sequence in self._tracks:
            self.scheduler.cancel(track.request)
            track.sequence.finish_reason = "cancelled"
            self._forget(track)
            if self._reporter:
                self._reporter.finished(track)
                if not self.busy:
                    self._reporter.idle()

    def step(self, *, hurry: bool = False) -> list[tuple[Track, list[GenerationChunk]]]:
        """Admit who may run, advance every row, and return what each request gained.

        Args:
            hurry: do not wait for a batch to fill.
        """
        self._admit(hurry)
        if not self.decoder.busy:
            return []
        emitted, live = [], len(self._tracks)
        for output in self._advance():
            track = self._tracks[output.sequence]
            chunks = track.emit(output, self.clock())
            if track.done:
                self.scheduler.finish(track.request)
                self._forget(track)
                if track.sequence.error is not None:
                    self._reporter.failed("step", track.sequence.error, track.request.request_id)
            self._discount(output, len(chunks))
            emitted.append((track, chunks))
        ended = live - len(self._tracks)
        if ended:
            self._give_back()
        if self._reporter:
            self._reporter.stepped(self.decoder, self.scheduler, emitted, ended)
        if self.decoder.meter.steps % CLEAR_CACHE_EVERY == 0:
            mx.clear_cache()
        return emitted

    def set_batch_size(self, rows: int) -> None:
        """Change the number of rows; what runs beyond it is preempted at the next step."""
        self.scheduler.rows = rows

    def stats(self) -> GenerationStats:
        """Figures over all requests so far."""
        ties = self.decoder.runner.support.verdict == "near-ties"
        stats = self.decoder.meter.stats(mx.get_peak_memory())
        return replace(stats, exactness="near-ties" if ties else "exact")

    def kv_usage(self) -> KVUsage:
        """The K/V memory now."""
        return self.decoder.kv_usage(self.budget.kv.limit)

    @property
    def _step_bytes(self) -> int:
        """Bytes that choosing tokens takes for each row of a step, beside its K/V."""
        width = self.speculation.num_draft_tokens + 1
        return width * self.decoder.runner.vocabulary * 4 * STEP_COPIES

    def _advance(self) -> list[StepOutput]:
        try:
            return self.decoder.step()
        except Exception as error:
            self._reporter.failed("step", repr(error))
            raise

    def _admit(self, hurry: bool) -> None:
        plan = self.scheduler.plan(self.clock(), hurry=hurry)
        if self._reporter and (plan.preempt or plan.admit):
            preempted = [self._by_request[request] for request in plan.preempt]
            self._reporter.moved(preempted, [self._by_request[request] for request in plan.admit])
        for request in plan.preempt:
            self.decoder.suspend(self._by_request[request].sequence, save=True)
        if plan.preempt or plan.admit:
            self._drop_saved()
            self._size_slots()
        for request in plan.admit:
            track = self._by_request[request]
            if track.admitted is None:
                track.admitted = self.clock()
        self.decoder.add([self._by_request[request].sequence for request in plan.admit])

    def _drop_saved(self) -> None:
        """K/V kept aside that do not fit beside the rows are given up, to be computed again.

        First of those whose turn is last. What returns now stays until it is back in its slot.
        """
        free = self.budget.kv.left([request.tokens for request in self.scheduler.running])
        if self.decoder.saved_bytes > free:
            for request in reversed(self.scheduler.waiting):
                dropped = self.decoder.drop_saved(self._by_request[request].sequence)
                if dropped and self.decoder.saved_bytes <= free:
                    break

    def _size_slots(self) -> None:
        """Make room for what the running requests may come to need, within the limit."""
        tokens = [request.tokens for request in self.scheduler.running]
        self.decoder.max_rows = max(self.scheduler.rows, len(tokens))
        if tokens:
            size, kv = self.budget.kv.block_size, self.budget.kv
            aside = replace(kv, limit=kv.limit - self.decoder.saved_bytes)
            most = min(self.scheduler.rows, aside.most_rows(max(tokens)))
            positions = -(-max(tokens) // size) * size
            self.decoder.size_slots(SlotSize(len(tokens), max(len(tokens), most), positions))
        self._promise()

    def _promise(self) -> None:
        """Tell other engines what rows may come to hold, so that they leave it alone."""
        usage = self.kv_usage()
        rows = self.budget.kv.nbytes([request.tokens for request in self.scheduler.running])
        kept = usage.bytes_saved + usage.bytes_prefix
        LEDGER.note(self, max(rows, usage.bytes_held) + kept, usage.total)

    def _give_back(self) -> None:
        """Where most of what is held was for requests that have ended, hold less."""
        tokens = [request.tokens for request in self.scheduler.running]
        if self.decoder.kv_usage().bytes_held > 4 * self.budget.kv.slot_bytes(tokens):
            self._size_slots()

    def _discount(self, output: StepOutput, given: int) -> None:
        """Where a stop text cut a run off, take back what was counted past it."""
        if given < len(output.tokens):
            drafted = max(0, output.drafted - given)
            accepted = max(0, output.accepted - given)
            output.sequence.drafted -= drafted
            output.sequence.accepted -= accepted
            self.decoder.meter.drop(len(output.tokens) - given, drafted, accepted)

    def _forget(self, track: Track) -> None:
        self.decoder.remove(track.sequence)
        del self._tracks[track.sequence], self._by_request[track.request]
        if not self._tracks:
            self.decoder.trim()
            self._promise()


def _with_prefix_share(batching: BatchingConfig, room: int, models: int) -> BatchingConfig:
    """The same, but for prefix caches that would crowd out the rows."""
    most = int(PREFIX_SHARE * room) // models
    return replace(batching, prefix_cache_bytes=min(batching.prefix_cache_bytes, most))
