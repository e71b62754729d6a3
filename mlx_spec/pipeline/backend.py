"""Who answers a stage's requests: a ``BatchedMLXGenerator``, or a batch of scored labels.

Both take a request and hand back something to wait for; the runner knows nothing else of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.batching.token_stream import TokenStream, deadline
from mlx_spec.errors import InvalidRequest, ModelLoadError, UnsupportedModel
from mlx_spec.events import Listener
from mlx_spec.load_config import LoadConfig
from mlx_spec.model.context import context_length
from mlx_spec.model.heads.files import names_head
from mlx_spec.model.heads.mtp import make_draft_model
from mlx_spec.model.loader import load
from mlx_spec.model.pairing import check_pair
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.scoring.label_scores import Scoring
from mlx_spec.pipeline.stage import (
    Answer,
    Generate,
    LoadedModel,
    Respond,
    Responded,
    Stage,
    WantedTexts,
)
from mlx_spec.results import GenerationStats
from mlx_spec.structured.compiler import guide_of

Loaded = tuple[Any, Any]


class Pending(Protocol):
    """An answer to come."""

    @property
    def done(self) -> bool:
        """Whether :meth:`result` returns, or raises, at once."""

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the answer; TimeoutError after ``timeout`` seconds."""


class Backend(Protocol):
    """Answers requests, many at once."""

    def submit(self, request: Any, seed: int) -> Pending:
        """Take a request; InvalidRequest if it can never be served."""

    def stats(self) -> GenerationStats:
        """Figures so far."""


class Models:
    """What was loaded, so that stages that share a model load it once.

    Args:
        loading: entered, with a word on what is loaded, for as long as that takes.
        tell: hears in a line what was found where nobody named it.
    """

    def __init__(
        self,
        loading: Callable[[str], AbstractContextManager[Any]] = nullcontext,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._loaded: dict[tuple[str, LoadConfig], Loaded] = {}
        self._loading, self._tell = loading, tell

    def load(self, name: str, config: LoadConfig) -> Loaded:
        """The model and its tokenizer."""
        if (name, config) not in self._loaded:
            with self._loading(f"loading {name}"):
                self._loaded[name, config] = load(name, config=config)
        return self._loaded[name, config]

    def pair(self, flags: Flags, *, drafting: bool) -> tuple[Loaded, Loaded | None]:
        """Target and, if one is used, draft."""
        target = self.load(flags.target, flags.loading)
        if not drafting:
            return target, None
        if flags.head_of is not None and not names_head(flags.head_of):
            return target, self._brought(target[0], flags.head_of, flags)
        if flags.drafter is None:
            return target, None
        draft = self.load(flags.drafter, flags.draft_loading)
        check_pair(target[1], draft[1])
        return target, draft

    def _brought(self, model: Any, place: str, flags: Flags) -> Loaded:
        """The head that a checkpoint brings for its model.

        Raises:
            UnsupportedModel, ModelLoadError: it brings none that fits.
        """
        key = f"the head for {flags.target} in {place}", flags.loading
        if key in self._loaded:
            return self._loaded[key]
        revision = flags.revision if place == flags.target else None
        try:
            with self._loading(f"looking for a head in {place}"):
                head = make_draft_model(model, place, revision)
        except (UnsupportedModel, ModelLoadError) as error:
            raise type(error)(
                f"{error}; --draft head takes one with --draft-model, which `mlx-spec train-draft` "
                "makes"
            ) from error
        self._loaded[key], count = (head, None), len(head.stages)
        heads = "head" if count == 1 else f"{count} heads"
        self._tell(f"drafting with the {heads} that {place} brings")
        return self._loaded[key]


@dataclass(frozen=True)
class AllTexts:
    """All texts of an API's request, to come.

    Attributes:
        streams: of every prompt in turn.
        asked: makes the answer of them.
    """

    streams: Seq[TokenStream]
    asked: WantedTexts

    @property
    def done(self) -> bool:
        return all(stream.done for stream in self.streams)

    def result(self, timeout: float | None = None) -> Responded:
        """Wait for all of them."""
        left = deadline(timeout)
        results = [stream.result(left()) for stream in self.streams]
        whole = Responded({}, results)
        return whole if whole.error else replace(whole, body=self.asked.write(results))


class Generation:
    """WantedTexts.

    Args:
        generator: runs them; others may use it at the same time.
        model: which one, with the options of what records leave open.
        priority: of all requests.
    """

    def __init__(
        self, generator: BatchedMLXGenerator, model: LoadedModel, priority: int = 0
    ) -> None:
        self._generator, self._model, self._priority = generator, model, priority
        if model.sampling.structure is not None:  # before the first record
            guide_of(model.sampling.structure, model.tokenizer, "[flags] all records")

    def submit(self, request: Generate | Respond, seed: int) -> Pending:
        if isinstance(request, Respond):
            return self._start(request.read(self._model), seed)
        sampling = replace(self._model.sampling, **{"seed": seed, **request.sampling})
        chat = replace(self._model.chat, texts=self._model.chat.texts and not request.raw)
        return self._generator.submit(request.prompt, sampling, chat=chat, priority=self._priority)

    def _start(self, asked: WantedTexts, seed: int) -> Pending:
        sampling = asked.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=seed)
        streams: list[TokenStream] = []
        for prompt in asked.prompts:
            streams += self._generator.submit(
                prompt,
                sampling,
                n=asked.n,
                chat=asked.chat or False,
                priority=self._priority,
                **asked.options,
            )
        return AllTexts(streams, asked)

    def stats(self) -> GenerationStats:
        return self._generator.stats().generation


class NoModel:
    """For stages that ask nothing."""

    def submit(self, request: Any, seed: int) -> Pending:
        """There is nobody to answer.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest(
            f"[pipeline] {type(request).__name__} asked, but the stage uses nothing"
        )

    def stats(self) -> GenerationStats:
        return GenerationStats()


@contextmanager
def open_backend(
    stage: Stage, flags: Flags, models: Models, listeners: Seq[Listener] = ()
) -> Iterator[Backend]:
    """What answers this stage; models are loaded here, threads end with the block."""
    if stage.uses == "nothing":
        yield NoModel()
        return
    target, draft = models.pair(flags, drafting=stage.uses == "generate")
    if stage.uses == "score":
        yield Scoring(*target, flags)
        return
    with BatchedMLXGenerator(
        *target,
        draft_model=draft,
        batching=flags.batches,
        speculation=flags.speculation,
        listeners=listeners,
    ) as generator:
        yield Generation(generator, _described(target, flags))


def _described(target: Loaded, flags: Flags) -> LoadedModel:
    model, tokenizer = target
    limits = (context_length(model), flags.batches.max_seq_len)
    context = min((limit for limit in limits if limit is not None), default=None)
    sampling, chat = flags.sampling_for(tokenizer), flags.chat(tokenizer)
    return LoadedModel(flags.target, tokenizer, context, sampling, chat)
