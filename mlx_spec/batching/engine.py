"""``Engine``: scheduler, decoder and texts under one ``step()``.

Everything that decodes goes through it: a closed list of prompts (``BatchStream``) steps it in
the caller's thread, ``BatchedMLXGenerator`` in a thread of its own. It owns no thread and no lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_spec.batching.detokenizers import LateDetokenizer
from mlx_spec.batching.memory import (
    TokenBudget,
    agreed_room,
    alike_layers,
    with_prefix_share,
)
from mlx_spec.batching.output import make_chunks, make_result
from mlx_spec.batching.reporter import EventReporter
from mlx_spec.batching.reservations import Reservations
from mlx_spec.batching.row_memory import RowMemory, token_budget
from mlx_spec.batching.scheduler import Scheduler
from mlx_spec.batching.shortage import Shortage, is_shortage, renewed
from mlx_spec.batching.text import TextStream, spell
from mlx_spec.cache.usage import KVUsage
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.control.demand import RowDemand
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.flight import StepOutput
from mlx_spec.decoding.setup import used_model
from mlx_spec.events import Listener
from mlx_spec.model.ranks import ranks_of
from mlx_spec.results import GenerationChunk, GenerationStats
from mlx_spec.row_limit import RowLimit
from mlx_spec.sequence import Sequence

# As mlx-lm does: give unused buffers back now and then, since lengths and so sizes change.
CLEAR_CACHE_EVERY = 256


class Engine:
    """Runs requests over the rows of one decoder.

    Args:
        model, draft_model: target and draft; the draft may be None, or a pair with its tokenizer.
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
        draft = draft_model[0] if isinstance(draft_model, tuple) else draft_model
        draft = used_model(draft, self.speculation)
        self.ranks = ranks_of(model)
        room = agreed_room(self.ranks, batching.memory_limit, model, draft)
        # Where ranks hold layers of different kinds or numbers, what fits differs between them.
        self._keeps = not self.ranks.several or alike_layers(self.ranks, model, batching)
        share = room if self._keeps else 0
        self.batching = with_prefix_share(batching, share, models=1 if draft is None else 2)
        self.clock, self._tokenizer = clock, tokenizer
        self.limit = RowLimit(self.batching.batch_size)
        self.demand, self.shortage = RowDemand(), Shortage(self.limit)
        self._make_decoder = partial(
            SpeculativeDecoder,
            model,
            draft_model=draft_model,
            tokenizer=tokenizer,
            speculation=self.speculation,
            batching=self.batching,
            clock=clock,
            limit=self.limit,
            demand=self.demand,
        )
        self.decoder, self._stopping = self._make_decoder(), _never
        budget = token_budget(self, self.decoder, self.batching, self.ranks, room)
        self.scheduler: Scheduler[Sequence] = Scheduler(
            self.limit,
            self.batching.batch_timeout,
            budget,
            preemption=self.batching.enable_preemption,
            aging=self.batching.aging,
        )
        self._use(self.decoder, budget)
        self.finished = self.cancelled = 0  # requests, over all time
        self._reporter = EventReporter(listeners, clock)
        self._report_start({"target": model, "draft": draft}, budget.kv.limit)

    def _report_start(self, models: dict[str, Any], limit: int) -> None:
        if self._reporter:
            self._reporter.started(models, self.batching, self.speculation, limit)

    def _use(self, decoder: SpeculativeDecoder, budget: TokenBudget) -> None:
        """Run requests here. No way back from it: who drops an engine has its memory at once."""
        self.decoder = decoder
        self._reservations = Reservations(budget, decoder.speculation.margin)
        self.memory = RowMemory(self, decoder, self.scheduler, budget)

    @property
    def rests(self) -> bool:
        """Whether nothing waits or runs: the same on all ranks, whatever has come to one."""
        return not (self.scheduler.backlog or self.scheduler.active)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return not self.rests

    def now(self) -> float:
        """The time by which it is decided who runs."""
        return self.clock()

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Ask between the layers of a prompt's pass whether all requests are about to go."""
        self._stopping = stopping
        self.decoder.stop_when(stopping)

    def know_costs(self) -> None:
        """Time what steps cost, where this machine has not, before any request comes."""
        self.decoder.know_costs()

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        self.decoder.device.synchronize()

    def settle(self) -> None:
        """What was cancelled is to be gone, for everybody who takes part."""

    def submit(self, *requests: Sequence) -> None:
        """Queue requests, all or none.

        Raises:
            InvalidRequest: one can never fit, or holds a token outside the vocabulary.
            IllegalTransition: one was submitted before.
        """
        self.check(requests)
        self.queue(requests, self.clock())

    def check(self, requests: Seq[Sequence]) -> None:
        """Refuse requests of which one can never be served; ``submit`` says how."""
        for request in requests:
            request.request_id = request.request_id or f"prompt-{request.index}"
            try:
                self.decoder.check(request)
                request.guesses = self.decoder.speculation.most_of(request)
                self.scheduler.check(request, self._reservations.first(request))
            except Exception as error:
                self._reporter.failed("submit", repr(error), request.request_id)
                raise

    def queue(self, requests: Seq[Sequence], now: float) -> None:
        """Take in requests that were checked, and that came at a time of the clock."""
        for request in requests:
            request.guesses = self.decoder.speculation.most_of(request)
            request.submit(now, self._reservations.first(request))
            detokenizer = LateDetokenizer(self._tokenizer, request.prompt)
            request.text = TextStream(detokenizer, request.sampling.stop_texts)
            request.spell = partial(spell, self._tokenizer)
            self.scheduler.submit(request)
            self.demand.came += 1
            if self._reporter:
                self._reporter.submitted(request)

    def cancel(self, request: Sequence) -> None:
        """Stop a request wherever it stands; one that has ended stays as it is."""
        if request.ended:
            return
        request.cancel()
        self.cancelled += 1
        self._forget(request)
        if self._reporter:
            self._reporter.finished(request)
            if not self.busy:
                self._reporter.idle()
        _deliver(request, [])

    def step(self, *, hurry: bool = False) -> list[Sequence]:
        """Admit who may run, advance every row, and hand each request's sink what it gained.

        Args:
            hurry: do not wait for a batch to fill.

        Returns:
            The requests that gained tokens, or ended.
        """
        self._admit(hurry)
        if not self.decoder.busy:
            return []
        outputs, now = self._advance(), self.clock()
        ended = [output.sequence for output in outputs if output.sequence.ended]
        for output in outputs:
            if output.tokens:
                output.sequence.emitted(now)
        for request in ended:
            self.finished += 1
            self._forget(request)
            if request.error is not None:
                self._reporter.failed("step", request.error, request.request_id)
        if ended:
            self.memory.requests_ended()
        self.shortage.stepped()
        if self._reporter:
            self._reporter.stepped(self.decoder, self.scheduler, outputs, len(ended))
        # Last: who sees a request end finds it in the statistics, and its memory free.
        for output in outputs:
            if output.sequence.sink is not None:
                _deliver(output.sequence, make_chunks(output))
        if outputs and self.decoder.meter.steps % CLEAR_CACHE_EVERY == 0:
            mx.clear_cache()
        return [output.sequence for output in outputs]

    def set_batch_size(self, rows: int) -> None:
        """Change the number of rows; what runs beyond it is preempted at the next step."""
        self.shortage.set(rows)

    def begin_anew(self) -> Sequence:
        """After a step that found no memory: what ran waits again, with nothing in the caches.

        Returns:
            The one request that is given up.
        """
        victim = self.shortage.happened(self.scheduler.running)
        self.finished += 1
        self.scheduler.remove(victim)
        preempted = self.scheduler.evict_all(self.now())
        self._use(renewed(self.decoder, self._make_decoder), self.memory.budget)
        self.decoder.stop_when(self._stopping)
        self.memory.members_changed()
        self._reporter.began_anew(preempted, victim)
        if not self.busy:
            self.shortage.over()
        _deliver(victim, [])
        return victim

    def stats(self) -> GenerationStats:
        """Figures over all requests so far."""
        ties = self.decoder.runner.support.verdict == "near-ties"
        stats = self.decoder.meter.stats(mx.get_peak_memory())
        return replace(
            stats,
            exactness="near-ties" if ties else "exact",
            passes=self.decoder.slow_passes,
            measured=self.decoder.speculation.measuring.told,
        )

    def kv_usage(self) -> KVUsage:
        """The K/V memory now."""
        return self.memory.usage

    def _advance(self) -> list[StepOutput]:
        try:
            return self.decode()
        except Exception as error:
            self._reporter.failed("step", repr(error))
            if is_shortage(error):
                raise self.shortage.error(self.scheduler.active) from error
            raise

    def decode(self) -> list[StepOutput]:
        """The decoder's part of a step."""
        return self.decoder.step()

    def lose(self, words: str) -> None:
        """A part of the model is gone: have listeners told, in any thread."""
        self._reporter.failed("ranks", words)

    def _admit(self, hurry: bool) -> None:
        self._grow()
        plan = self.scheduler.plan(self.now(), hurry=hurry)
        self.demand.waiting = self.scheduler.backlog
        if not (plan.preempt or plan.admit):
            return
        if self._reporter:
            self._reporter.moved(plan.preempt, plan.admit)
        for request in plan.preempt:
            self.decoder.suspend(request, save=self._keeps)
        self.memory.members_changed()
        self.decoder.add(plan.admit)

    def _grow(self) -> None:
        """Let those without an end of their own reserve more, as they come to need it."""
        grown = False
        for request in self.scheduler.running:
            more = self._reservations.next(request)
            if more is None or not request.holds_row:
                continue
            preempted = self.scheduler.grow(request, more, self.now())
            if preempted is None:
                self._reservations.close(request)
                continue
            grown = True
            if preempted and self._reporter:
                self._reporter.moved(preempted, [])
            for victim in preempted:
                self.decoder.suspend(victim, save=self._keeps)
        if grown:
            self.memory.members_changed()

    def _forget(self, request: Sequence) -> None:
        """It has ended: its row and its place are free."""
        self.scheduler.remove(request)
        self.decoder.remove(request)
        if self.rests:
            self.memory.idle()
            self.shortage.over()


def _never() -> bool:
    return False


def _deliver(request: Sequence, chunks: list[GenerationChunk]) -> None:
    """The one way out: what a request gained, and its result if it has ended."""
    if request.sink is not None:
        request.sink.put(chunks, make_result(request) if request.ended else None)
