"""``BatchStream``: a closed list of requests, decoded together, handed out token by token.

It owns no thread: work is done while the caller iterates, in whatever thread that is.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

import mlx.core as mx

from mlx_spec.batching.closing import Closing
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.memory import LEDGER, wired_memory
from mlx_spec.results import BatchResult, GenerationChunk, GenerationStats
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
        self._tracks = [engine.submit(sequence) for sequence in sequences]
        if LEDGER.alone(engine):  # the peak is the process's: others' is not to be forgotten
            mx.reset_peak_memory()
        self._chunks: Generator[GenerationChunk, None, None] = _run(engine)
        self._turn = threading.RLock()  # a generator refuses two threads at once

    def __next__(self) -> GenerationChunk:
        with self._turn:
            return next(self._chunks)

    def close(self) -> None:
        """Cancel whatever still runs. Doing it twice does no harm."""
        with self._turn:
            self._chunks.close()
            for track in self._tracks:
                self._engine.cancel(track)

    def result(self) -> BatchResult:
        """The requests as they stand, in the caller's order, and the statistics."""
        return BatchResult([track.result() for track in self._tracks], self.stats, self._labels)

    @property
    def stats(self) -> GenerationStats:
        """Figures over all requests so far; tokens that were not handed out do not count."""
        given = sum(track.given for track in self._tracks)
        return replace(self._engine.stats(), generation_tokens=given)

    def __repr__(self) -> str:
        ended = sum(track.done for track in self._tracks)
        tokens = sum(track.given for track in self._tracks)
        return f"<BatchStream: {ended} of {len(self._tracks)} ended, {tokens} tokens given out>"


def _run(engine: Engine) -> Generator[GenerationChunk, None, None]:
    """Chunks as they come. It does not know the stream: dropped, that goes at once."""
    # On a Mac this keeps the weights resident; elsewhere it does nothing.
    with wired_memory(engine.decoder.device.synchronize):
        while engine.busy:
            for track, chunks in engine.step(hurry=True):
                for chunk in chunks:
                    track.give(chunk)
                    yield chunk
