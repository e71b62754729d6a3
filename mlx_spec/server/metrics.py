"""``Meters``: the server's figures as Prometheus reads them, in a registry of their own."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from mlx_spec.batching.generator_stats import GeneratorStats
from mlx_spec.events import (
    Event,
    FirstToken,
    MemoryRanOut,
    RequestFinished,
    RequestPreempted,
    StepDone,
)
from mlx_spec.metrics.distribution import Gaps
from mlx_spec.server.protocol.faults import Fault

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
_PREFIX = "mlx_spec"


@dataclass(frozen=True)
class Door:
    """What of the service is shown.

    Attributes:
        ready: whether new requests are taken.
        queue_limit: most that may wait.
        tokens_per_second: of all rows, lately.
    """

    ready: bool
    queue_limit: int
    tokens_per_second: float


class Meters:
    """A listener of the engine that counts, and what a scrape reads.

    Counters tell what happened. Gauges are set when somebody looks.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._gaps = Gaps()
        self._ends = self._counter("requests", "Requests that ended, by how.", "reason")
        self._refusals = self._counter("refusals", "Requests refused or failed, by why.", "reason")
        self._tokens = self._counter("generated_tokens", "Tokens generated.")
        self._prompts = self._counter("prompt_tokens", "Prompt tokens read, reused ones included.")
        self._drafted = self._counter("draft_tokens", "Draft tokens verified.", "drafter")
        self._accepted = self._counter("accepted_tokens", "Those accepted.", "drafter")
        self._hits = self._counter("prefix_hits", "Requests whose beginning was known.")
        self._reused = self._counter("prefix_reused_tokens", "Prompt tokens not computed again.")
        self._short = self._counter("out_of_memory", "Steps that found no memory.")
        self._preempted = self._counter("preemptions", "Times that a request lost its row.")
        self._ttft = self._histogram("ttft_seconds", "Time to first token.", _SECONDS)
        self._itl = self._histogram("itl_seconds", "Time between a request's tokens.", _GAPS)
        self._queue = self._histogram("queue_seconds", "Wait for a row.", _SECONDS)
        self._lengths = self._histogram("draft_length", "Draft length, by steps.", _LENGTHS)
        self._rows = self._gauge("rows_running", "Requests with a row.")
        self._size = self._gauge("rows_size", "Rows.")
        self._waiting = self._gauge("queue_waiting", "Requests that wait for a row.")
        self._limit = self._gauge("queue_limit", "Most that may wait.")
        self._speed = self._gauge("tokens_per_second", "Of all rows, in the last seconds.")
        self._rate = self._gauge("acceptance_rate", "Accepted of drafted tokens, in all.")
        self._kv = self._gauge("kv_bytes", "K/V memory held, by what for.", "kind")
        self._kv_limit = self._gauge("kv_bytes_limit", "Most K/V memory of rows.")
        self._up = self._gauge("ready", "1 where new requests are taken.")

    def __call__(self, event: Event) -> None:
        """Count what an event tells."""
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, FirstToken):
            self._ttft.observe(event.ttft)
        elif isinstance(event, RequestPreempted):
            self._preempted.inc()
        elif isinstance(event, MemoryRanOut):
            self._short.inc()
        elif isinstance(event, RequestFinished):
            self._ends.labels(event.reason).inc()
            self._queue.observe(event.queue_time)
            self._gaps.forget(event.request_id)
            self._hits.inc(event.reused_tokens > 0)
            self._reused.inc(event.reused_tokens)

    def refused(self, fault: Fault) -> None:
        """Count a request that was not served."""
        self._refusals.labels(fault.kind).inc()

    def text(self, stats: GeneratorStats, door: Door) -> bytes:
        """What a scrape gets."""
        self._rows.set(stats.running)
        self._size.set(stats.batch_size)
        self._waiting.set(stats.waiting)
        self._limit.set(door.queue_limit)
        self._up.set(door.ready)
        self._speed.set(door.tokens_per_second)
        self._rate.set(stats.generation.acceptance_rate)
        kinds = {"rows": stats.kv.bytes_held, "aside": stats.kv.bytes_saved}
        for kind, size in {**kinds, "prefix": stats.kv.bytes_prefix}.items():
            self._kv.labels(kind).set(size)
        self._kv_limit.set(stats.kv.bytes_limit)
        return generate_latest(self._registry)

    def _step(self, step: StepDone) -> None:
        self._tokens.inc(step.tokens)
        self._prompts.inc(step.prompt_tokens)
        if step.rows:
            self._lengths.observe(step.draft_length)
        for name, (drafted, accepted) in step.drafters.items():
            self._drafted.labels(name).inc(drafted)
            self._accepted.labels(name).inc(accepted)
        for gap, rows in self._gaps.of(step):
            for _ in range(rows):
                self._itl.observe(gap)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", about, buckets=buckets, registry=self._registry)
