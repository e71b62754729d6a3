"""The questions of ``bench_batching.py``: each measures, prints a table and returns a record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from bench_support.pair import Pair
from bench_support.results import table
from bench_support.rounds import Figures, Method, Series, interleave, ratio
from bench_support.serving import (
    Load,
    Setting,
    mixed,
    run_all,
    run_arrivals,
    run_beside,
    run_groups,
)
from mlx_spec import BatchingConfig

EAGER = BatchingConfig(batch_timeout=0.0)


def against_static(pair: Pair, rounds: int, batch: int = 8, count: int = 32) -> Any:
    """Continuous against static batching where the outputs' lengths are mixed."""
    loads = mixed(pair, count, mean=24, most=144)
    groups = [loads[i : i + batch] for i in range(0, count, batch)]
    padded = [[replace(one, tokens=max(o.tokens for o in g)) for one in g] for g in groups]
    config = replace(EAGER, batch_size=batch)
    wanted = sum(load.tokens for load in loads)

    def full() -> Figures:
        figures = run_groups(pair, Setting(config), padded)
        made = sum(load.tokens for group in padded for load in group)
        return {**figures, "tok/s": figures["tok/s"] * wanted / made}

    methods: dict[str, Method] = {
        "static, ended rows keep their place": full,
        "static, ended rows leave": partial(run_groups, pair, Setting(config), groups),
        "continuous": partial(run_groups, pair, Setting(config), [loads]),
        "continuous, speculating": partial(run_groups, pair, Setting(config, True), [loads]),
    }
    results = interleave(methods, rounds)
    first, *_ = results.values()
    rows = [
        [name, one.span("tok/s"), f"{one.median('steps'):.0f}", f"{ratio(one, first, 'tok/s'):.2f}"]
        for name, one in results.items()
    ]
    title = f"{count} requests, {wanted} tokens of mixed lengths, {batch} rows"
    table(title, ["method", "tok/s", "steps", "ratio"], rows)
    return _record(results)


def prefixes(pair: Pair, rounds: int, count: int = 12, length: int = 1000) -> Any:
    """A repeated beginning of 1,000 tokens, kept or computed again each time."""
    source = inspect.getsource(inspect)[: 4 * length]  # the context is 2,048 tokens
    begin = list(pair.tokenizer.encode(source))[:length]
    loads = [Load(begin + prompt, 16) for prompt in pair.prompts(count)]
    methods: dict[str, Method] = {}
    for speculate in (False, True):
        for kept in (0, 2**28):
            config = replace(EAGER, batch_size=8, prefix_cache_bytes=kept)
            name = f"{'kept' if kept else 'not kept'}{', speculating' if speculate else ''}"
            methods[name] = partial(run_all, pair, Setting(config, speculate), loads)
    results = interleave(methods, rounds)
    first, *_ = results.values()
    rows = [
        [
            name,
            one.span("tok/s"),
            f"{one.median('ttft'):.2f}",
            f"{one.median('reused'):.0f}",
            f"{ratio(one, first, 'tok/s'):.2f}",
        ]
        for name, one in results.items()
    ]
    header = ["prefix", "tok/s", "mean TTFT s", "prompt tokens reused", "ratio"]
    table(f"{count} requests that share {length} tokens, 8 rows, 16 tokens each", header, rows)
    return _record(results)


def timeouts(pair: Pair, rounds: int, count: int = 24) -> Any:
    """How long an idle batch waits for company, against latency."""
    loads = mixed(pair, count, mean=12, most=48)
    lines, record = [], {}
    for rate in (4.0, 20.0):
        methods: dict[str, Method] = {}
        for timeout in (0.0, 0.02, 0.1, 0.5):
            setting = Setting(BatchingConfig(batch_size=8, batch_timeout=timeout))
            methods[f"{timeout:g}"] = partial(run_arrivals, pair, setting, loads, rate)
        results = interleave(methods, rounds)
        names = ("ttft p50", "ttft p95", "whole p50", "whole p95", "tok/s")
        for timeout, one in results.items():
            lines.append([f"{rate:g}", timeout, *(f"{one.median(name):.0f}" for name in names)])
        record[f"{rate:g}/s"] = _record(results)
    header = ["requests a second", "`batch_timeout` s", "TTFT p50", "TTFT p95", "whole p50"]
    title = f"{count} requests at random times, 8 rows, milliseconds"
    table(title, [*header, "whole p95", "tok/s"], lines)
    return record


def gaps(pair: Pair, rounds: int, length: int = 1500) -> Any:
    """The longest pause of running streams while a newcomer's long prompt is fed."""
    source = list(pair.tokenizer.encode(inspect.getsource(inspect)[: 4 * length]))
    newcomer = Load(source[:length], 2)
    running = [Load(prompt, 100) for prompt in pair.prompts(3)]
    bounds: dict[str, dict[str, Any]] = {
        "100 ms (default)": {},
        "400 ms": {"prefill_pause_ms": 400.0},
        "512 tokens": {"prefill_interleave": 512},
    }
    methods: dict[str, Method] = {
        name: partial(
            run_beside, pair, Setting(replace(EAGER, batch_size=4, **bound)), running, newcomer
        )
        for name, bound in bounds.items()
    }
    results = interleave(methods, rounds)
    rows = [
        [name, *(f"{one.median(figure):,.0f}" for figure in ("usual", "longest", "ttft"))]
        for name, one in results.items()
    ]
    header = ["read between two steps", "usual pause ms", "longest pause ms"]
    title = f"A prompt of {length:,} tokens beside three running streams"
    table(title, [*header, "newcomer's TTFT ms"], rows)
    return _record(results)


def _record(results: dict[str, Series]) -> dict[str, Any]:
    return {name: [_round(figures) for figures in one.rounds] for name, one in results.items()}


def _round(figures: Figures) -> Figures:
    return {name: round(value, 3) for name, value in figures.items()}


QUESTIONS: dict[str, Callable[[Pair, int], Any]] = {
    "static": against_static,
    "prefix": prefixes,
    "timeout": timeouts,
    "gap": gaps,
}
