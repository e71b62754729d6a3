"""Open-loop load: requests come when they come, whatever is still running, as users' do.

The same arrivals and prompts drive our generator and mlx-lm's ``BatchGenerator``; what a user sees
is stamped alike: when a token is handed over.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from mlx_lm.generate import BatchGenerator

from bench_support.rounds import Figures
from bench_support.serving import percentile
from mlx_spec import BatchedMLXGenerator, BatchingConfig, SamplingParams, SpeculationConfig


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, in seconds, its prompt, and how many tokens it wants."""

    at: float
    prompt: list[int]
    tokens: int


@dataclass
class Served:
    """What its user sees.

    Attributes:
        at: when it came, in seconds of the run.
        stamps: when tokens were handed over, one for each.
        tokens: what was said.
    """

    at: float = 0.0
    stamps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds from coming to the first token."""
        return self.stamps[0] - self.at

    @property
    def pauses(self) -> list[float]:
        """Seconds between two deliveries; what is handed over together is one of them."""
        return [b - a for a, b in pairwise(self.stamps) if b - a > 1e-4]


Drive = Callable[[Sequence[Arrival]], list[Served]]


def poisson(
    prompts: Sequence[list[int]], rate: float, mean: float, most: int, seed: int
) -> list[Arrival]:
    """Arrivals of a Poisson process, ``rate`` a second; output lengths exponential, at least 4."""
    rng, at, found = random.Random(seed), 0.0, []
    for prompt in prompts:
        found.append(Arrival(at, prompt, max(4, min(most, round(rng.expovariate(1 / mean))))))
        at += rng.expovariate(rate)
    return found


@dataclass(frozen=True)
class Ours:
    """Our generator.

    Attributes:
        model, tokenizer, draft_model: as everywhere.
        rows: most that decode together.
        draft: what guesses; empty for nothing.
    """

    model: Any
    tokenizer: Any
    rows: int
    draft: str = ""
    draft_model: Any = None

    def __call__(self, arrivals: Sequence[Arrival]) -> list[Served]:
        with BatchedMLXGenerator(
            self.model,
            self.tokenizer,
            draft_model=self.draft_model
            if {"head", "model"} & set(self.draft.split("+"))
            else None,
            batching=BatchingConfig(batch_size=self.rows),
            speculation=SpeculationConfig(enabled=bool(self.draft), draft=self.draft or None),
        ) as generator:
            return asyncio.run(self._all(generator, arrivals))

    async def _all(self, generator: Any, arrivals: Sequence[Arrival]) -> list[Served]:
        started = time.perf_counter()

        async def one(arrival: Arrival) -> Served:
            await asyncio.sleep(max(0.0, arrival.at - (time.perf_counter() - started)))
            served = Served(arrival.at)
            sampling = SamplingParams(max_tokens=arrival.tokens, ignore_eos=True)
            async for chunk in generator.submit(arrival.prompt, sampling):
                served.stamps.append(time.perf_counter() - started)
                served.tokens.append(chunk.token)
            return served

        return list(await asyncio.gather(*map(one, arrivals)))


@dataclass(frozen=True)
class MlxLm:
    """mlx-lm's generator, in its own insert and next loop.

    Attributes:
        model: the model.
        rows: most that decode together.
    """

    model: Any
    rows: int

    def __call__(self, arrivals: Sequence[Arrival]) -> list[Served]:
        generator = BatchGenerator(
            self.model, completion_batch_size=self.rows, prefill_batch_size=min(8, self.rows)
        )
        found: dict[int, Served] = {}
        waiting, running = list(arrivals), 0
        started = time.perf_counter()
        while waiting or running:
            now = time.perf_counter() - started
            while waiting and waiting[0].at <= now:
                arrival = waiting.pop(0)
                (uid,) = generator.insert([arrival.prompt], max_tokens=[arrival.tokens])
                found[uid] = Served(arrival.at)
                running += 1
            if not running:
                time.sleep(waiting[0].at - now)
                continue
            _, responses = generator.next()
            now = time.perf_counter() - started
            for response in responses:
                found[response.uid].stamps.append(now)
                found[response.uid].tokens.append(int(response.token))
                running -= response.finish_reason is not None
        generator.close()
        return [found[uid] for uid in sorted(found)]


def figures(served: Sequence[Served]) -> Figures:
    """Of one run: tokens a second from the first arrival to the last token, and milliseconds."""
    seconds = max(s.stamps[-1] for s in served) - min(s.at for s in served)
    firsts = sorted(1e3 * s.ttft for s in served)
    pauses = sorted(1e3 * pause for s in served for pause in s.pauses)
    each = [
        1e3 * (s.stamps[-1] - s.stamps[0]) / (len(s.stamps) - 1) for s in served if s.stamps[1:]
    ]
    found = {"tok/s": sum(len(s.tokens) for s in served) / seconds}
    for name, values in (("TTFT", firsts), ("ITL", pauses)):
        for share in (50, 95, 99):
            found[f"{name} p{share}"] = percentile(values, share / 100) if values else 0.0
    found["ms a token"] = statistics.median(each)
    return found


def alike(ours: Sequence[Served], theirs: Sequence[Served]) -> float:
    """The share of answers that are the same, token for token."""
    pairs = zip(ours, theirs, strict=True)
    return sum(a.tokens == b.tokens for a, b in pairs) / max(1, len(ours))
