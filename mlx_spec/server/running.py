"""``Running``: the sequences of one request while they run, as its route holds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from collections.abc import Sequence as Seq
from contextlib import aclosing, contextmanager

from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.results import GenerationChunk, GenerationResult

Burst = list[tuple[int, GenerationChunk]]
_Arrivals = asyncio.Queue["tuple[int, list[GenerationChunk] | Exception]"]


class Running:
    """A request that was taken; cancelled when it is, or when nobody holds it.

    Args:
        streams: its sequences, all texts of the first prompt first.
    """

    def __init__(self, streams: Seq[TokenStream]) -> None:
        self._streams = streams

    @property
    def left(self) -> int:
        """Sequences that have not ended."""
        return sum(not stream.done for stream in self._streams)

    def cancel(self) -> None:
        """Nobody wants more; rows are free within one step."""
        for stream in self._streams:
            stream.cancel()

    @contextmanager
    def unless_broken(self) -> Iterator[None]:
        """Cancel it where the block fails."""
        try:
            yield
        except BaseException:
            self.cancel()
            raise

    async def results(self) -> list[GenerationResult]:
        """Those of all sequences, in their order; who gives up waiting cancels what is left."""
        with self.unless_broken():
            return [await stream for stream in self._streams]

    async def __aiter__(self) -> AsyncIterator[tuple[int, GenerationChunk]]:
        async with aclosing(self.bursts()) as bursts:
            async for burst in bursts:
                for item in burst:
                    yield item

    async def bursts(self) -> AsyncGenerator[Burst, None]:
        """Chunks as they come, all that are there at a time, each with its sequence's number.

        Raises:
            Exception: what ended the generator, or a refusal that came late.
        """
        if len(self._streams) == 1:
            while chunks := await self._streams[0].fresh():
                yield [(0, chunk) for chunk in chunks]
            return
        arrivals: _Arrivals = asyncio.Queue()
        pumps = [
            asyncio.create_task(_pump(number, stream, arrivals))
            for number, stream in enumerate(self._streams)
        ]
        try:
            left = len(pumps)
            while left:
                burst: Burst = []
                for number, arrived in await _all(arrivals):
                    if isinstance(arrived, Exception):
                        raise arrived
                    left -= not arrived
                    burst += [(number, chunk) for chunk in arrived]
                if burst:
                    yield burst
        finally:
            for pump in pumps:
                pump.cancel()

    async def ended(self) -> AsyncGenerator[tuple[int, GenerationResult], None]:
        """Results as sequences end, each with its number."""

        async def wait(number: int, stream: TokenStream) -> tuple[int, GenerationResult]:
            return number, await stream

        waits = [asyncio.create_task(wait(*pair)) for pair in enumerate(self._streams)]
        try:
            for next_one in asyncio.as_completed(waits):
                yield await next_one
        finally:
            for one in waits:
                one.cancel()


async def _pump(number: int, stream: TokenStream, arrivals: _Arrivals) -> None:
    """All that a sequence says, an empty list at its end."""
    try:
        chunks = await stream.fresh()
        while chunks:
            arrivals.put_nowait((number, chunks))
            chunks = await stream.fresh()
        arrivals.put_nowait((number, []))
    except Exception as error:
        arrivals.put_nowait((number, error))


async def _all(arrivals: _Arrivals) -> list[tuple[int, list[GenerationChunk] | Exception]]:
    """What has arrived; waits for something."""
    found = [await arrivals.get()]
    while not arrivals.empty():
        found.append(arrivals.get_nowait())
    return found
