"""``Service``: one ``BatchedMLXGenerator`` behind a door that opens as far as there is room.

It takes requests in our own words (``Asked``), whatever API they came in, and knows nothing of
HTTP. What is slow (templates, encoding) is done in threads of its own, so that the event loop, and
with it all streams, goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.generator_stats import GeneratorStats
from mlx_spec.batching.prompts import Prompt, encode, prompt_name
from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.config import ChatConfig
from mlx_spec.errors import InvalidRequest, PromptTooLong
from mlx_spec.server.ears import Ears
from mlx_spec.server.metrics import Door
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.refusals import refused
from mlx_spec.server.running import Running

T = TypeVar("T")
LOG = logging.getLogger("mlx_spec.server")
# Threads for templates and encoding; most of that is done outside of Python's lock.
_THREADS = 4
MOST_STOPS = 64  # texts: each is looked for in every token's text
# Seconds after which to try again: where nothing is known, and at most.
_SOON, _LATE = 1.0, 60.0


class Service:
    """What routes ask.

    Args:
        generator: runs all requests.
        served: what is known of its model.
        options: limits.
        ears: they listen to the generator.
        configured: what was asked for, as plain data.

    Attributes:
        draining: whether nothing new is taken: what runs is finished, then the server ends.
        refusals: requests that were not served, by reason.
        works: what else runs while the server does; entered when it starts, left at its end.
    """

    def __init__(
        self,
        generator: BatchedMLXGenerator,
        served: ServedModel,
        options: ServerOptions,
        ears: Ears,
        configured: Mapping[str, Any],
    ) -> None:
        self.generator, self.served, self.options = generator, served, options
        self.traffic, self.configured = ears.traffic, configured
        self._entrance, self._meters = ears.entrance, ears.meters
        self.draining = False
        self.refusals: Counter[str] = Counter()
        self.works: list[AbstractContextManager[object]] = []
        self._numbers = itertools.count()
        self._coming = 0  # sequences whose prompts are being encoded
        self._running: list[Running] = []
        self._threads = ThreadPoolExecutor(_THREADS, "mlx-spec-http")

    @property
    def healthy(self) -> bool:
        """Whether there is an engine that answers."""
        return not self.generator.closed

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self.healthy and not self.draining

    @property
    def outstanding(self) -> int:
        """Sequences that were taken and have not ended."""
        self._running = [one for one in self._running if one.left]
        return self._coming + sum(one.left for one in self._running)

    @property
    def rows(self) -> int:
        """Most sequences that run together."""
        return self.traffic.batch_size

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something slow without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def submit(self, asked: Asked) -> Running:
        """Take a request, once it is known that it can be served.

        Raises:
            Refused: there is no room, or the server ends.
            InvalidRequest: it can never be served.
        """
        asked = self.limited(asked)
        self._admit(asked.sequences)
        base = f"http-{next(self._numbers)}"
        names = [f"{base}/{number}" for number in range(len(asked.prompts))]
        single = [name if asked.n == 1 else f"{name}-{k}" for name in names for k in range(asked.n)]
        expected = self._entrance.expect(single)
        try:
            with self._reserved(asked.sequences):
                streams = await self.in_thread(self._start, asked, names)
                running = Running(streams)
                self._running.append(running)
            with running.unless_broken():
                if not await self._entrance.passed(expected, streams):
                    await asyncio.gather(*streams)  # raises what the engine said
        finally:
            self._entrance.forget(single)
        return running

    def limited(self, asked: Asked) -> Asked:
        """A request within the limits that need no encoding; without an end of its own it gets one.

        Raises:
            InvalidRequest: a limit is passed.
        """
        most, sampling = self.options, asked.sampling
        if asked.n > most.max_n:
            raise InvalidRequest(f"n is {asked.n}, at most {most.max_n} are served (--max-n)")
        if len(sampling.stop_texts) > MOST_STOPS:
            raise InvalidRequest(
                f"stop has {len(sampling.stop_texts)} texts, at most {MOST_STOPS} are looked for"
            )
        limit, wanted = most.max_output_tokens, sampling.max_tokens
        if limit is None:
            return asked
        if wanted is not None and wanted > limit:
            raise InvalidRequest(
                f"max_tokens is {wanted}, at most {limit} are served (--max-output-tokens)"
            )
        return replace(asked, sampling=replace(sampling, max_tokens=wanted or limit))

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.draining = True

    def cancel_all(self) -> None:
        """Give up what runs."""
        self.draining = True
        for running in self._running:
            running.cancel()

    def close(self) -> None:
        """End the threads; the generator is its owner's."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def count(self, fault: Fault) -> Fault:
        """Count what a caller is told; returns it."""
        self.refusals[fault.kind] += 1
        self._meters.refused(fault)
        return fault

    def metrics(self, stats: GeneratorStats) -> bytes:
        """What Prometheus reads."""
        speed = self.traffic.lately().tokens_per_second
        return self._meters.text(stats, Door(self.ready, self.options.max_queue, speed))

    def _admit(self, sequences: int) -> None:
        """Whether there is room now.

        Raises:
            Refused: there is not; says when to try again.
        """
        if self.draining:
            raise refused(503, "the server is shutting down", "draining", _SOON)
        if not self.healthy:
            raise refused(503, "the engine has failed; the server's log says why", "unhealthy")
        room = self.rows + self.options.max_queue
        if sequences > room:
            raise InvalidRequest(
                f"the request asks for {sequences} texts; at most {room} run or wait at a time "
                "(--batch-size, --max-queue): send fewer, or use /v1/batches"
            )
        outstanding = self.outstanding
        if outstanding + sequences > room:
            raise refused(
                429,
                f"{outstanding} texts run or wait, and at most {room} may; try again later",
                "queue_full",
                self._when(outstanding + sequences - room),
            )

    def _when(self, places: int) -> float:
        """Seconds until so many places are likely to be free, as fast as requests end lately."""
        rate = self.traffic.ends_per_second()
        return min(_LATE, max(_SOON, places / rate)) if rate else _SOON

    @contextmanager
    def _reserved(self, sequences: int) -> Iterator[None]:
        self._coming += sequences
        try:
            yield
        finally:
            self._coming -= sequences

    def _start(self, asked: Asked, names: list[str]) -> list[TokenStream]:
        """In a thread: encode and submit all prompts; streams that nobody takes are cancelled."""
        chat = asked.chat or ChatConfig(texts=False)
        extra = {} if asked.prediction is None else {"prediction": asked.prediction}
        encoded = [
            self._encode(prompt, prompt_name(number, len(names)), chat)
            for number, prompt in enumerate(asked.prompts)
        ]
        streams: list[TokenStream] = []
        for ids, name in zip(encoded, names, strict=True):
            several = {} if asked.n == 1 else {"n": asked.n}
            made: Any = self.generator.submit(  # type: ignore[call-overload]
                ids, asked.sampling, priority=asked.priority, request_id=name, **several, **extra
            )
            streams += [made] if asked.n == 1 else made
        return streams

    def _encode(self, prompt: Prompt, where: str, chat: ChatConfig) -> list[int]:
        ids = encode(self.served.tokenizer, prompt, where, chat)
        limits = (self.options.max_prompt_tokens, self.served.context and self.served.context - 1)
        most = min((limit for limit in limits if limit is not None), default=len(ids))
        if len(ids) > most:
            raise PromptTooLong(f"{where} has {len(ids)} tokens, at most {most} are served")
        return ids
