"""``GeneratorStats``: a generator at one moment, and how it shows itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_spec.batching.engine import Engine
from mlx_spec.cache.usage import KVUsage
from mlx_spec.display import Displayable, Summary
from mlx_spec.results import GenerationStats


@dataclass(frozen=True)
class GeneratorStats(Displayable):
    """The generator at one moment.

    Attributes:
        waiting, running: requests.
        finished, cancelled: requests, over all time; those that failed alone have finished.
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
    def summary(self) -> Summary:
        """What a notebook or terminal shows: (label, text)."""
        return [
            ("requests", f"{self.running:,} running, {self.waiting:,} waiting"),
            ("ended", f"{self.finished:,} finished, {self.cancelled:,} cancelled"),
            ("preempted", f"{self.preempted:,}"),
            ("batch size", f"{self.batch_size:,}"),
            ("K/V held", f"{self.cache_bytes / 1e6:,.1f} MB"),
            *_kv_summary(self.kv),
            *self.generation.summary,
        ]


def generator_stats(engine: Engine) -> GeneratorStats:
    """An engine at one moment; any thread may ask, and gets a step in progress half counted."""
    kv = engine.kv_usage()
    return GeneratorStats(
        waiting=engine.scheduler.backlog,
        running=engine.scheduler.active,
        finished=engine.finished,
        cancelled=engine.cancelled,
        preempted=engine.scheduler.preempted,
        batch_size=engine.limit.rows,
        cache_bytes=kv.total,
        generation=engine.stats(),
        kv=kv,
    )


def _kv_summary(kv: KVUsage) -> Summary:
    """What there is to say of slots, once there are any."""
    if not kv.slots:
        return []
    kinds = ", ".join(f"{kind} {size / 1e6:,.1f} MB" for kind, size in kv.bytes_by_kind.items())
    return [
        ("K/V slots", f"{kv.slots_used:,} of {kv.slots:,} used, {kv.positions:,} tokens each"),
        ("K/V blocks", f"{kv.blocks_used:,} of {kv.blocks:,} used"),
        ("K/V unused", f"{kv.waste:.0%} of the slots' {kv.bytes_held / 1e6:,.1f} MB"),
        ("K/V by kind", kinds),
    ]
