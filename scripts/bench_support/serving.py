"""Runs of the generator: requests submitted at once or over time, timed as their users would."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench_support.pair import Pair
from bench_support.rounds import Figures
from mlx_spec import BatchedMLXGenerator, BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.batching.token_stream import TokenStream


@dataclass(frozen=True)
class Load:
    """One request: its prompt and how many tokens it wants."""

    prompt: list[int]
    tokens: int

    @property
    def sampling(self) -> SamplingParams:
        """Greedy, of exactly this length."""
        return SamplingParams(max_tokens=self.tokens, ignore_eos=True)


@dataclass(frozen=True)
class Setting:
    """How a generator is set up."""

    batching: BatchingConfig
    speculate: bool = False
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def open(self, pair: Pair) -> BatchedMLXGenerator:
        """The generator."""
        return BatchedMLXGenerator(
            pair.model,
            pair.tokenizer,
            draft_model=pair.draft if self.speculate else None,
            batching=self.batching,
            speculation=self.speculation,
        )


def mixed(pair: Pair, count: int, mean: float, most: int, seed: int = 3) -> list[Load]:
    """Requests whose output lengths are exponentially distributed, as chats' roughly are."""
    rng = random.Random(seed)
    lengths = [max(1, min(most, round(rng.expovariate(1 / mean)))) for _ in range(count)]
    return [Load(p, n) for p, n in zip(pair.prompts(count), lengths, strict=True)]


def run_groups(pair: Pair, setting: Setting, groups: Sequence[Sequence[Load]]) -> Figures:
    """Group after group, each submitted when the one before has ended; tokens per second."""
    with setting.open(pair) as generator:
        started = time.perf_counter()
        for group in groups:
            streams = [generator.submit(load.prompt, load.sampling) for load in group]
            for stream in streams:
                stream.result()
        seconds = time.perf_counter() - started
        made = generator.stats().generation
    tokens = sum(load.tokens for group in groups for load in group)
    return {"tok/s": tokens / seconds, "steps": made.steps, "accepted": made.acceptance_rate}


def run_all(pair: Pair, setting: Setting, loads: Sequence[Load]) -> Figures:
    """All at once: tokens per second, time to first token, prompt tokens found in the cache."""
    with setting.open(pair) as generator:
        started = time.perf_counter()
        streams = [generator.submit(load.prompt, load.sampling) for load in loads]
        results = [stream.result() for stream in streams]
        seconds = time.perf_counter() - started
    return {
        "tok/s": sum(load.tokens for load in loads) / seconds,
        "seconds": seconds,
        "ttft": sum(result.ttft for result in results) / len(results),
        "reused": sum(result.reused_tokens for result in results),
    }


def run_arrivals(pair: Pair, setting: Setting, loads: Sequence[Load], rate: float) -> Figures:
    """Requests that come at random times, ``rate`` a second: their latencies, in milliseconds."""
    rng = random.Random(11)
    streams: list[TokenStream] = []
    with setting.open(pair) as generator:
        generator.submit(loads[0].prompt, loads[0].sampling).result()  # warm
        started = time.perf_counter()
        for load in loads:
            time.sleep(rng.expovariate(rate))
            streams.append(generator.submit(load.prompt, load.sampling))
        results = [stream.result() for stream in streams]
        seconds = time.perf_counter() - started
    first = sorted(1e3 * result.ttft for result in results)
    whole = sorted(1e3 * result.duration for result in results)
    return {
        "ttft p50": percentile(first, 0.5),
        "ttft p95": percentile(first, 0.95),
        "whole p50": percentile(whole, 0.5),
        "whole p95": percentile(whole, 0.95),
        "tok/s": sum(load.tokens for load in loads) / seconds,
    }


def run_beside(pair: Pair, setting: Setting, running: Sequence[Load], newcomer: Load) -> Figures:
    """A newcomer's long prompt beside running streams: their longest pause, in milliseconds."""
    times: list[list[float]] = [[] for _ in running]

    def watch(stream: TokenStream, stamps: list[float]) -> None:
        stamps.extend(time.perf_counter() for _ in stream)

    with setting.open(pair) as generator:
        streams = [generator.submit(load.prompt, load.sampling) for load in running]
        watchers = [
            threading.Thread(target=watch, args=each) for each in zip(streams, times, strict=True)
        ]
        for watcher in watchers:
            watcher.start()
        while min(map(len, times)) < 8:  # all decode
            time.sleep(0.005)
        arrived = time.perf_counter()
        result = generator.submit(newcomer.prompt, newcomer.sampling).result()
        for watcher in watchers:
            watcher.join()
    pauses = [(b, b - a) for stamps in times for a, b in pairwise(stamps)]
    usual = sorted(pause for at, pause in pauses if at < arrived)
    after = [pause for at, pause in pauses if at >= arrived]
    return {
        "usual": 1e3 * percentile(usual, 0.5),
        "longest": 1e3 * max(after),
        "ttft": 1e3 * result.ttft,
    }


def percentile(ascending: Sequence[float], share: float) -> Any:
    """The value below which ``share`` of them lie."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
