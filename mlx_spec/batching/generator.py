"""``BatchedMLXGenerator``: submit from anywhere, one thread decodes, requests come and go.

It checks and encodes prompts in the caller's thread and hands them to its ``Worker``, which owns
all MLX work; callers hold streams.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, overload

from mlx_spec.batching.arguments import SamplingOptions, check_models, with_options
from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.closing import Closing
from mlx_spec.batching.generator_stats import GeneratorStats as GeneratorStats
from mlx_spec.batching.leading import make_engine
from mlx_spec.batching.predictions import Prediction, Predictions
from mlx_spec.batching.prompts import DraftModel, Prompt, drafting_model, make_sequences, repeated
from mlx_spec.batching.token_stream import TokenStream, deadline
from mlx_spec.batching.worker import Worker
from mlx_spec.config import BatchingConfig, ChatConfig, SamplingParams, SpeculationConfig
from mlx_spec.errors import InvalidRequest
from mlx_spec.events import Listener
from mlx_spec.model.materialize import materialize
from mlx_spec.results import GenerationResult
from mlx_spec.sequence import Sequence

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BatchedMLXGenerator(Closing):
    """Continuous batching with speculation; a context manager, also of ``async with``.

    A request runs as long as somebody wants it: it is cancelled when its stream is closed, dropped
    or given up (see ``TokenStream``). The generator ends when it is closed, or dropped together
    with all streams that still run.

    Example::

        with BatchedMLXGenerator(model, tokenizer, draft_model=draft) as generator:
            streams = [generator.submit(prompt) for prompt in prompts]
            for chunk in streams[0]:
                print(chunk.text, end="")
            texts = [stream.result().text for stream in streams]

    Args:
        model: the target, as ``load`` returned it.
        tokenizer: its tokenizer; None if all prompts are token ids.
        draft_model: a smaller model that guesses ahead, or its (model, tokenizer) pair.
        batching: rows, timeout, memory, prefix cache, priorities.
        speculation: how far to guess.
        listeners: told what happens, in the worker's thread (``events``, ``metrics``).

    Raises:
        TokenizerMismatch, UnsupportedModel, CapacityError: as ``stream_batch_generate``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        draft_model: DraftModel = None,
        batching: BatchingConfig | None = None,
        speculation: SpeculationConfig | None = None,
        listeners: Seq[Listener] = (),
    ) -> None:
        check_models(model, tokenizer, "BatchedMLXGenerator")
        batching = batching or BatchingConfig()
        self._model, self._tokenizer, self._batching = model, tokenizer, batching
        draft = drafting_model(draft_model, tokenizer)
        # In this thread, which may have described what the worker could not compute.
        for held in (model, draft[0] if isinstance(draft, tuple) else draft):
            materialize(held)
        self._numbers = itertools.count()
        speculation = speculation or SpeculationConfig()
        self._predictions = Predictions(tokenizer, speculation)
        self._worker = Worker(
            lambda: make_engine(
                model,
                tokenizer,
                draft_model=draft,
                speculation=speculation,
                batching=batching,
                listeners=listeners,
            )
        )
        # The thread does not know the generator: dropped, it must not live on.
        weakref.finalize(self, self._worker.stop).atexit = False

    @overload
    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = ...,
        *,
        n: None = ...,
        chat: bool | ChatConfig = ...,
        priority: int = ...,
        request_id: str | None = ...,
        prediction: Prediction | None = ...,
        **options: Unpack[SamplingOptions],
    ) -> TokenStream: ...
    @overload
    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = ...,
        *,
        n: int,
        chat: bool | ChatConfig = ...,
        priority: int = ...,
        request_id: str | None = ...,
        prediction: Prediction | None = ...,
        **options: Unpack[SamplingOptions],
    ) -> list[TokenStream]: ...
    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        n: int | None = None,
        chat: bool | ChatConfig = False,
        priority: int = 0,
        request_id: str | None = None,
        prediction: Prediction | None = None,
        **options: Unpack[SamplingOptions],
    ) -> TokenStream | list[TokenStream]:
        """Queue one request; returns at once. Hold the stream: dropped, its request is cancelled.

        Args:
            prompt: a text, fed as it is, token ids, or chat messages, which are templated.
            sampling: how to choose tokens and when to stop.
            n: so many texts of the prompt, with the seeds SEED, SEED + 1, ...: then a list of
                streams, each a request of its own; the prompt is read once.
            chat: True makes a text a message of the user; ``ChatConfig`` says more.
            priority: higher goes first.
            request_id: a name for errors and logs; of several ``NAME-0``, ``NAME-1``, ...
            prediction: what the text is likely to be, as text or token ids: a draft for this
                request alone, which never becomes its text (an edited file is mostly the old one).
            options: fields of ``SamplingParams``, in the place of those of ``sampling``.

        Raises:
            InvalidRequest: a bad prompt, a prediction where nothing is drafted, or a
                ``request_id`` that is in use.
            GeneratorClosed: the generator was closed, or its worker has failed.
        """
        made = with_options(sampling, options, "BatchedMLXGenerator.submit")
        sequences = make_sequences(
            self._model,
            self._tokenizer,
            *repeated([prompt], made, 1 if n is None else n),
            self._batching.max_seq_len,
            ChatConfig.of(chat),
        )
        predicted = self._predictions.of(prediction)
        for sequence in sequences:
            sequence.prediction = predicted
        streams = self._start(sequences, priority, request_id)
        return streams[0] if n is None else streams

    def generate(
        self,
        prompts: Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        n: int = 1,
        chat: bool | ChatConfig = False,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[GenerationResult]:
        """Submit all prompts, each ``n`` times, and wait for their results, in order; options as in
        ``submit``.

        None is left running, however it ends.

        Raises:
            TimeoutError: they did not all end within ``timeout`` seconds.
            InvalidRequest: a prompt that can never be served; then none is.
        """
        left = deadline(timeout)
        made = with_options(sampling, options, "BatchedMLXGenerator.generate")
        with self._all(*repeated(prompts, made, n), chat) as streams:
            return [stream.result(left()) for stream in streams]

    async def agenerate(
        self,
        prompts: Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        n: int = 1,
        chat: bool | ChatConfig = False,
        **options: Unpack[SamplingOptions],
    ) -> list[GenerationResult]:
        """The same from a coroutine; cancel it, or wait with ``asyncio.timeout``, to give up."""
        made = with_options(sampling, options, "BatchedMLXGenerator.agenerate")
        with self._all(*repeated(prompts, made, n), chat) as streams:
            return [await stream for stream in streams]

    def stats(self) -> GeneratorStats:
        """The generator between two steps; requests whose end was seen are counted.

        Waits for the step that is being computed, but not for one that takes long: then it is
        the generator as it stands, in the middle of that. A closed one says how it ended.
        """
        return self._worker.stats()

    def __repr__(self) -> str:
        stats = self.stats()
        state = f"{stats.running} running, {stats.waiting} waiting, {stats.finished} finished"
        return f"<BatchedMLXGenerator: {state}>"

    def set_batch_size(self, rows: int) -> None:
        """Change the number of rows; requests beyond it wait and go on later, unharmed."""
        if not isinstance(rows, int) or rows < 1:
            raise InvalidRequest(
                f"[BatchedMLXGenerator.set_batch_size] rows={rows!r}, expected an integer >= 1"
            )
        self._worker.post(lambda engine: engine.set_batch_size(rows))

    def drain(self, timeout: float | None = None) -> None:
        """Wait until every submitted request has ended.

        Raises:
            TimeoutError: some had not, after ``timeout`` seconds.
        """
        self._worker.drain(timeout)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or its worker has failed."""
        return self._worker.closed

    def close(self) -> None:
        """Cancel what still runs and end the worker. Doing it twice does no harm."""
        self._worker.close()

    def _start(
        self, sequences: Seq[Sequence], priority: int = 0, request_id: str | None = None
    ) -> list[TokenStream]:
        """Queue requests that were checked, all or none."""
        buffers = []
        for number, sequence in enumerate(sequences):
            sequence.index = next(self._numbers)
            sequence.priority = priority
            if not request_id:
                sequence.request_id = f"request-{sequence.index}"
            else:
                part = f"-{number}" if len(sequences) > 1 else ""
                sequence.request_id = f"{request_id}{part}"
            buffers.append(ChunkBuffer(sequence.request_id, self._worker.cancel, self))
            sequence.sink = buffers[-1]
        self._worker.submit(sequences)
        return [TokenStream(buffer) for buffer in buffers]

    @contextmanager
    def _all(
        self, prompts: Seq[Prompt], sampling: Any, chat: bool | ChatConfig
    ) -> Iterator[list[TokenStream]]:
        """Streams of all prompts, none of which outlives the block; all are checked first."""
        sequences = []
        if len(prompts):
            longest = self._batching.max_seq_len
            sequences = make_sequences(
                self._model, self._tokenizer, prompts, sampling, longest, ChatConfig.of(chat)
            )
        with ExitStack() as held:
            yield [held.enter_context(stream) for stream in self._start(sequences)]
