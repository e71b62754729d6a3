"""``BatchStream``: a closed list of requests, decoded together, handed out token by token.

It keeps the decoder's rows full from a waiting list (rows join and leave at every step), turns
tokens into text and counts times. It owns no thread: work is done while the caller iterates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit

from mlx_spec.batching.text import TextStream, make_detokenizer
from mlx_spec.decoding.decoder import SpeculativeDecoder, StepOutput
from mlx_spec.results import BatchResult, GenerationChunk, GenerationResult, GenerationStats
from mlx_spec.sequence import Sequence

# As mlx-lm does: give unused buffers back now and then, since lengths and so sizes change.
CLEAR_CACHE_EVERY = 256


@dataclass
class _Track:
    """One request's text and times, in seconds after the start of the call."""

    sequence: Sequence
    text: TextStream
    first: float = 0.0
    last: float = 0.0


class BatchStream(Iterator[GenerationChunk]):
    """Iterate for chunks of all requests as they come; ask for results and statistics any time.

    Closing it (or leaving its ``with`` block) before the end cancels what still runs; what was
    generated until then stays available.

    Args:
        decoder: decodes the sequences; used by this stream alone.
        tokenizer: None for tokens without text.
        sequences: the requests, in the caller's order.
    """

    def __init__(
        self, decoder: SpeculativeDecoder, tokenizer: Any, sequences: Seq[Sequence]
    ) -> None:
        self._decoder = decoder
        self._tracks = {
            sequence: _Track(
                sequence,
                TextStream(make_detokenizer(tokenizer, sequence.prompt), sequence.sampling.stop),
            )
            for sequence in sequences
        }
        self._waiting = deque(sequences)
        self._started = time.perf_counter()
        mx.reset_peak_memory()
        self._chunks: Generator[GenerationChunk, None, None] = self._run()

    def __next__(self) -> GenerationChunk:
        return next(self._chunks)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel whatever still runs. Doing it twice does no harm."""
        self._chunks.close()
        for sequence in self._tracks:
            if sequence.finish_reason is None:
                sequence.finish_reason = "cancelled"
                self._decoder.remove(sequence)
        self._waiting.clear()

    def result(self) -> BatchResult:
        """The requests as they stand, in the caller's order, and the statistics."""
        return BatchResult([self._result(track) for track in self._tracks.values()], self.stats)

    @property
    def stats(self) -> GenerationStats:
        """Figures over all requests so far."""
        meter = self._decoder.meter
        plain, speculative = meter.speeds()
        return GenerationStats(
            prompt_tokens=meter.prompt_tokens,
            generation_tokens=sum(len(sequence.tokens) for sequence in self._tracks),
            prompt_time=meter.prompt_seconds,
            generation_time=meter.seconds,
            peak_memory=mx.get_peak_memory(),
            steps=meter.steps,
            drafted=sum(sequence.drafted for sequence in self._tracks),
            accepted=sum(sequence.accepted for sequence in self._tracks),
            row_steps=meter.row_steps,
            draft_lengths=dict(sorted(meter.draft_lengths.items())),
            plain_tps=plain,
            speculative_tps=speculative,
        )

    def _run(self) -> Generator[GenerationChunk, None, None]:
        # On a Mac this keeps the weights resident; elsewhere it does nothing.
        with wired_limit(self._decoder.runner.model):
            while self._waiting or self._decoder.busy:
                free = min(self._decoder.free_rows, len(self._waiting))
                if free:
                    self._decoder.add([self._waiting.popleft() for _ in range(free)])
                for output in self._decoder.step():
                    yield from self._emit(self._tracks[output.sequence], output)
                if self._decoder.meter.steps % CLEAR_CACHE_EVERY == 0:
                    mx.clear_cache()

    def _emit(self, track: _Track, output: StepOutput) -> Iterator[GenerationChunk]:
        """Chunks of one row's run of tokens, cut off where a stop text ends it."""
        sequence = track.sequence
        track.last = time.perf_counter() - self._started
        track.first = track.first or track.last
        before = len(sequence.tokens) - len(output.tokens)
        for place, token in enumerate(output.tokens):
            # A stop token ends the text and is no part of it.
            text = "" if token in sequence.stop_ids else track.text.add(token)
            if track.text.stopped:
                sequence.cut(before + place + 1)
                self._decoder.remove(sequence)
            last = before + place + 1 == len(sequence.tokens)
            reason = sequence.finish_reason if last else None
            if reason:
                text += track.text.finish()
            yield GenerationChunk(
                index=sequence.index,
                text=text,
                token=token,
                from_draft=place < output.accepted,
                finish_reason=reason,
                prompt_tokens=len(sequence.prompt),
                generation_tokens=before + place + 1,
            )
            if reason:
                return

    def _result(self, track: _Track) -> GenerationResult:
        sequence = track.sequence
        return GenerationResult(
            text=track.text.text,
            token_ids=list(sequence.tokens),
            finish_reason=sequence.finish_reason or "cancelled",
            prompt_tokens=len(sequence.prompt),
            generation_tokens=len(sequence.tokens),
            ttft=track.first,
            duration=track.last,
            drafted=sequence.drafted,
            accepted=sequence.accepted,
            verify_steps=sequence.steps,
        )
