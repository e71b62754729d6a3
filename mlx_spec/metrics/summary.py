"""``summarise``: a run's lines as labelled figures; the terminal and the page show the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mlx_spec.metrics.distribution import Percentiles, bucket_value
from mlx_spec.metrics.goodput import NO_LIMITS, Goodput, Limits
from mlx_spec.metrics.log_reader import RunLog

NONE = "-"
# Longest names of models in a chart's legend, in characters.
_LONGEST = 60


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        number: its place among the runs, from 1.
        started: when, to the second.
        models: the folders' or hub names of target and draft.
        machine: device and backend.
        log: its lines.
        ttft, itl, tpot, queue_time: percentiles, in seconds.
        figures: label -> text; ``terms`` says what each means.
        stages: one row a stage: name, items, items/s, errors, seconds.
    """

    number: int
    started: str
    models: str
    machine: str
    log: RunLog
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    queue_time: Percentiles
    figures: dict[str, str]
    stages: list[tuple[str, str, str, str, str]]

    @property
    def name(self) -> str:
        """For charts and headings: the number, the models, and when."""
        models = self.models if len(self.models) <= _LONGEST else f"{self.models[:_LONGEST]}..."
        return f"{self.number}: {models}, {self.started}".removesuffix(", ")


def summarise(log: RunLog, limits: Limits = NO_LIMITS, number: int = 1) -> RunSummary:
    """A run's figures; ``number`` is its place among the runs."""
    latencies = {
        name: Percentiles.of(r[name] for r in log.requests if r.get(name) is not None)
        for name in ("ttft", "tpot", "queue_time")
    }
    gaps: Counter[float] = Counter()
    for line in log.inference:
        for bucket, count in line["itl"].items():
            gaps[bucket_value(int(bucket))] += count
    itl = Percentiles.of_counts(gaps)
    figures = {
        **_requests(log),
        "preempted": str(log.preempted),
        "errors": str(len(log.errors)),
        "log": "complete" if log.end is not None else "incomplete",
        **_throughput(log),
        **_drafting(log),
        "peak memory": f"{_most(log.inference, 'peak_memory') / 1e9:.3f} GB",
        "TTFT": _times(latencies["ttft"]),
        "ITL": _times(itl),
        "TPOT": _times(latencies["tpot"]),
        "queue time": _times(latencies["queue_time"]),
    }
    if limits:
        figures["goodput"] = _goodput(log, limits)
    return RunSummary(
        number,
        str(log.header.get("started", ""))[:19].replace("T", " "),
        _models(log.header),
        _machine(log.header),
        log,
        latencies["ttft"],
        itl,
        latencies["tpot"],
        latencies["queue_time"],
        figures,
        _stages(log),
    )


def _models(header: dict[str, Any]) -> str:
    """Target and draft by the names they were asked for, else by their kind."""
    notes = _mapping(header.get("notes"))
    known = {
        role: str(_mapping(model).get("type", "?"))
        for role, model in _mapping(header.get("models")).items()
    }
    known.update({role: _short(notes[role]) for role in ("target", "draft") if role in notes})
    return " + ".join(known.values()) or NONE


def _short(name: Any) -> str:
    """A folder's own name, or what a model is called on the hub."""
    return PurePath(str(name)).name or str(name)


def _machine(header: dict[str, Any]) -> str:
    machine = _mapping(header.get("machine"))
    return f"{machine.get('device', '?')} ({machine.get('backend', '?')})"


def _requests(log: RunLog) -> dict[str, str]:
    reasons = Counter(str(request.get("reason")) for request in log.requests)
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    prompt = sum(_number(request.get("prompt_tokens")) for request in log.requests)
    reused = sum(_number(request.get("reused_tokens")) for request in log.requests)
    return {
        "requests": f"{len(log.requests)} ({ends})" if ends else "0",
        "prompt tokens": f"{prompt:,}" + (f" ({reused:,} reused)" if reused else ""),
        "tokens": f"{sum(line['tokens'] for line in log.inference):,}",
    }


def _throughput(log: RunLog) -> dict[str, str]:
    tokens = sum(line["tokens"] for line in log.inference)
    seconds = sum(line["seconds"] for line in log.inference)
    rows = sum(line["row_steps"] for line in log.inference)
    decoding = [line for line in log.inference if line["rows"]]
    steps = sum(line["row_steps"] / line["rows"] for line in decoding)
    places = sum(line["row_steps"] / line["rows"] * line["batch_size"] for line in decoding)
    return {
        "busy": f"{seconds:.1f} s",
        "throughput": f"{tokens / seconds:.1f} tok/s" if seconds else NONE,
        "occupancy": f"{rows / steps:.1f} of {places / steps:.3g} rows" if steps else NONE,
    }


def _drafting(log: RunLog) -> dict[str, str]:
    drafted = sum(line["drafted"] for line in log.inference)
    accepted = sum(line["accepted"] for line in log.inference)
    rows = sum(line["row_steps"] for line in log.inference)
    tokens = sum(line["tokens"] for line in log.inference)
    return {
        "acceptance": f"{accepted / drafted:.1%}" if drafted else NONE,
        "by drafter": _by_drafter(log),
        "tokens a pass": f"{tokens / rows:.2f}" if rows else NONE,
    }


def _by_drafter(log: RunLog) -> str:
    """What each gave; earlier versions did not say."""
    sums: dict[str, list[int]] = {}
    for line in log.inference:
        for name, counts in _mapping(line.get("drafters")).items():
            if isinstance(counts, list) and len(counts) == 2:
                of = sums.setdefault(str(name), [0, 0])
                sums[str(name)] = [a + _number(b) for a, b in zip(of, counts, strict=True)]
    shown = [
        f"{name} {kept / tried:.1%} of {tried:,}" for name, (tried, kept) in sums.items() if tried
    ]
    return ", ".join(shown) or NONE


def _goodput(log: RunLog, limits: Limits) -> str:
    ended = [r for r in log.requests if r.get("reason") != "cancelled"]
    seconds = sum(line["seconds"] for line in log.inference)
    goodput = Goodput.of([(r.get("ttft"), r.get("tpot")) for r in ended], seconds, limits)
    return f"{goodput.per_second:.2f} requests/s ({goodput.share:.0%} within the limits)"


def _stages(log: RunLog) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for name in dict.fromkeys(str(line.get("stage")) for line in log.stages):
        lines = [line for line in log.stages if str(line.get("stage")) == name]
        items, errors = sum(line["items"] for line in lines), sum(line["errors"] for line in lines)
        seconds = sum(line["seconds"] for line in lines)
        speed = f"{items / seconds:.2f}" if seconds else NONE
        rows.append((name, f"{items:,}", speed, str(errors), f"{seconds:.1f}"))
    return rows


def _times(percentiles: Percentiles) -> str:
    if percentiles.p50 is None or percentiles.p90 is None or percentiles.p99 is None:
        return NONE
    values = (percentiles.p50, percentiles.p90, percentiles.p99)
    scale, unit = (1.0, "s") if values[0] >= 1 else (1e3, "ms")
    return " / ".join(_digits(value * scale) for value in values) + f" {unit}"


def _digits(value: float) -> str:
    """Three digits, as far as they are behind the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _most(lines: list[dict[str, Any]], name: str) -> float:
    return max((line[name] for line in lines), default=0)


def _number(value: Any) -> int:
    """A count that a log may lack."""
    return value if isinstance(value, int) else 0


def _mapping(value: Any) -> dict[str, Any]:
    """A header's field as a mapping, whatever stands there."""
    return value if isinstance(value, dict) else {}
