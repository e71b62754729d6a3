"""What ``/v1/stats`` says. What was asked for and what happens are told apart."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from mlx_spec.batching.generator_stats import GeneratorStats
from mlx_spec.drafting import DrafterStats
from mlx_spec.server.service import Service


def statistics(service: Service, stats: GeneratorStats) -> dict[str, Any]:
    """All of it, as JSON has it."""
    traffic, generation, kv = service.traffic, stats.generation, stats.kv
    lately, ends = traffic.lately(), traffic.ends
    # What was drafted lately says more of now; where nothing was, all that ever was.
    recent = lately.accepted / lately.drafted if lately.drafted else generation.acceptance_rate
    return {
        "model": service.served.name,
        "uptime_s": round(time.time() - service.served.created, 1),
        "rows": {"running": stats.running, "size": stats.batch_size},
        "queue": {"waiting": stats.waiting, "limit": service.options.max_queue},
        "throughput_tps": round(lately.tokens_per_second, 2),
        "acceptance_rate": round(recent, 4),
        "draft_tokens_per_step": round(lately.draft_tokens_per_step, 3),
        "drafters": {name: _drafter(own) for name, own in generation.drafters.items()},
        "kv": {"bytes": kv.total, "bytes_limit": kv.bytes_limit, "bytes_prefix": kv.bytes_prefix},
        "prefix": {"hits": traffic.prefix_hits, "reused_tokens": traffic.reused_tokens},
        "ttft_ms": traffic.ttft_ms(),
        "itl_ms": traffic.itl_ms(),
        "requests": {
            "finished": ends["stop"] + ends["length"],
            "cancelled": ends["cancelled"],
            "failed": ends["error"],
            "refused": dict(service.refusals),
        },
        "draining": service.draining,
        "configured": service.configured,
        "happening": _happening(service, stats),
    }


def _happening(service: Service, stats: GeneratorStats) -> dict[str, Any]:
    """What was asked for and may not be: batches, drafts, reuse, as they were counted."""
    traffic, generation = service.traffic, stats.generation
    return {
        "steps": traffic.steps,
        "steps_with_several_rows": traffic.batched_steps,
        "most_rows": traffic.most_rows,
        "steps_with_a_draft": traffic.draft_steps,
        "tokens_a_pass": round(generation.mean_acceptance_length, 3),
        "drafters": sorted(name for name, own in generation.drafters.items() if own.drafted),
        "packed_steps": generation.packed_steps,
        "filled_steps": generation.filled_steps,
        "requests_with_a_known_prefix": traffic.prefix_hits,
        "preempted": traffic.preempted,
        "out_of_memory": traffic.out_of_memory,
        "exactness": generation.exactness,
        "slow_passes": generation.passes,
        "kv_kinds": dict(stats.kv.bytes_by_kind),
    }


def _drafter(own: DrafterStats) -> dict[str, Any]:
    rate = own.accepted / own.drafted if own.drafted else 0.0
    return {"drafted": own.drafted, "accepted": own.accepted, "acceptance_rate": round(rate, 4)}


def configured(*records: Any) -> dict[str, Any]:
    """Option objects as plain data, under their names; what is secret is none of them."""
    return {type(one).__name__: asdict(one) for one in records}
