"""``BatchStream``: a closed list of requests, decoded together, handed out token by token.

It owns no thread: work is done while the caller iterates, in whatever thread that is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

import mlx.core as mx

from mlx_spec import interrupts
from mlx_spec.batching.closing import Closing
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.memory import LEDGER, wired_memory
from mlx_spec.batching.output import make_result
from mlx_spec.cache.layer import RowState
from mlx_spec.results import BatchResult, GenerationChunk, GenerationResult, GenerationStats
from mlx_spec.sequence import Sequence


class BatchStream(Iterator[GenerationChunk], Closing):
    """Iterate for chunks of all requests as they come; ask for results and statistics any time.

    Nothing is computed but while it is iterated: who stops in the middle keeps memory, until the
    stream is closed or dropped. Closing it (or leaving its ``with`` block) before the end cancels
    what still runs; what was generated until then stays available. Threads may take turns.

    Args:
        engine: runs the sequences; used by this stream alone.
        sequences: the requests, in the caller's order.
        labels: what each is shown under in tables, if anything.

    Raises:
        InvalidRequest: a sequence that can never fit, or holds a token outside the vocabulary.
    """

    def __init__(self, engine: Engine, sequences: Seq[Sequence], labels: Seq[str] = ()) -> None:
        self._engine = engine
        self._labels = tuple(labels)
        self._requests = list(sequences)
        self._handed = [0] * len(self._requests)  # tokens of each that have reached the caller
        line: deque[tuple[int, GenerationChunk]] = deque()
        for place, request in enumerate(self._requests):
            request.sink = _Place(place, line)
        engine.submit(*self._requests)
        if LEDGER.alone(engine):  # the peak is the process's: others' is not to be forgotten
            mx.reset_peak_memory()
        self._chunks: Generator[GenerationChunk, None, None] = _run(engine, line, self._handed)
        self._turn = threading.RLock()  # a generator refuses two threads at once

    def __next__(self) -> GenerationChunk:
        with self._turn:
            return next(self._chunks)

    def close(self) -> None:
        """Cancel whatever still runs. Doing it twice does no harm."""
        with self._turn:
            self._chunks.close()
            for request in self._requests:
                self._engine.cancel(request)
            self._engine.settle()

    def remember(self, tokens: Seq[int], state: RowState) -> int:
        """Before the first chunk: what was saved elsewhere of a text that prompts begin with.

        Returns:
            Tokens that are kept.
        """
        with self._turn:
            return self._engine.decoder.remember(tokens, state)

    def result(self) -> BatchResult:
        """The requests as they stand, in the caller's order, and the statistics."""
        results = map(make_result, self._requests, self._handed)
        return BatchResult(list(results), self.stats, self._labels)

    @property
    def stats(self) -> GenerationStats:
        """Figures over all requests so far; tokens that were not handed out do not count."""
        return replace(self._engine.stats(), generation_tokens=sum(self._handed))

    def __repr__(self) -> str:
        ended, tokens = sum(request.ended for request in self._requests), sum(self._handed)
        return f"<BatchStream: {ended} of {len(self._requests)} ended, {tokens} tokens given out>"


class _Place:
    """The sink of one request: its chunks stand in line with those of all."""

    def __init__(self, place: int, line: deque[tuple[int, GenerationChunk]]) -> None:
        self._place, self._line = place, line

    def put(self, chunks: Seq[GenerationChunk], result: GenerationResult | None) -> None:
        """The result is asked of the stream, which knows what the caller has seen."""
        self._line.extend((self._place, chunk) for chunk in chunks)

    def fail(self, error: BaseException) -> None:
        """The engine runs in the caller's thread, and raises there."""


def _run(
    engine: Engine, line: deque[tuple[int, GenerationChunk]], handed: list[int]
) -> Generator[GenerationChunk, None, None]:
    """Chunks as they come. It does not know the stream: dropped, that goes at once."""
    # On a Mac this keeps the weights resident; elsewhere it does nothing.
    with wired_memory(engine.decoder.device.synchronize):
        while engine.busy:
            interrupts.check()
            engine.step(hurry=True)
            while line:
                place, chunk = line.popleft()
                handed[place] += 1
                yield chunk
