"""The functions people call: ``generate``, ``stream_generate``, ``batch_generate`` and
``stream_batch_generate``.

They check and encode prompts, build a decoder and let a ``BatchStream`` run it. All four are that
one path; a single prompt is a batch of one.

Example::

    model, tokenizer = load("demo")
    result = generate(model, tokenizer, "def read_", max_tokens=40, draft_model=load("demo-draft"))
    print(result.text, result.acceptance_rate)
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, overload

from mlx_spec.batching.arguments import SamplingOptions, check_models, with_options
from mlx_spec.batching.leading import make_engine
from mlx_spec.batching.prompts import (
    DraftModel,
    Prompt,
    drafting_model,
    make_sequences,
    prompt_label,
    repeated,
)
from mlx_spec.batching.stream import BatchStream
from mlx_spec.config import (
    PLAIN_CACHES,
    BatchingConfig,
    CacheOptions,
    ChatConfig,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.events import Listener
from mlx_spec.results import BatchResult, GenerationChunk, GenerationResult

if TYPE_CHECKING:
    from typing_extensions import Unpack


def stream_batch_generate(
    model: Any,
    tokenizer: Any,
    prompts: Seq[Prompt],
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams | Seq[SamplingParams] | None = None,
    n: int = 1,
    chat: bool | ChatConfig = False,
    speculation: SpeculationConfig | None = None,
    batching: BatchingConfig | None = None,
    listeners: Seq[Listener] = (),
    **options: Unpack[SamplingOptions],
) -> BatchStream:
    """Decode several prompts together; iterate the stream for chunks as they come.

    Args:
        model: the target, as ``load`` returned it.
        tokenizer: its tokenizer; None if all prompts are token ids (then there is no text).
        prompts: each a text, a list of token ids, or a list of chat messages. A text is fed to
            the model *as it is*, messages go through the tokenizer's chat template: an instruct
            model answers messages, and may answer nothing to a bare text.
        draft_model: a smaller model that guesses ahead, or its (model, tokenizer) pair: then the
            token maps are compared. The output is the same without it, only slower.
        sampling: options for all prompts, or one for each.
        n: texts of each prompt, one behind the other, with the seeds SEED, SEED + 1, ...; each
            prompt is read once.
        chat: True makes each text a message of the user, templated; a ``ChatConfig`` does so with
            a system prompt, a beginning of the answer, keywords for the template or tools.
        speculation: how far to guess.
        batching: rows that run together; further prompts join as rows become free.
        listeners: told what happens at every step (``PerformanceLog`` is one).
        options: fields of ``SamplingParams``, in the place of those of ``sampling``:
            ``max_tokens=200, temperature=0.7``.

    Raises:
        InvalidRequest: no prompts, an empty prompt, or options that do not match them.
        PromptTooLong: a prompt that fills the model's context.
        TokenizerMismatch: the draft has less than half of the target's tokens.
        UnsupportedModel: a model whose cache cannot roll back row by row.
    """
    owner = "generate"
    check_models(model, tokenizer, owner)
    batching = batching or BatchingConfig()
    prompts, sampling = repeated(prompts, with_options(sampling, options, owner), n)
    sequences = make_sequences(
        model,
        tokenizer,
        prompts,
        sampling,
        batching.max_seq_len,
        ChatConfig.of(chat),
    )
    engine = make_engine(
        model,
        tokenizer,
        draft_model=drafting_model(draft_model, tokenizer),
        speculation=speculation or SpeculationConfig(),
        batching=batching,
        listeners=listeners,
    )
    return BatchStream(engine, sequences, [prompt_label(prompt) for prompt in prompts])


def batch_generate(
    model: Any,
    tokenizer: Any,
    prompts: Seq[Prompt],
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams | Seq[SamplingParams] | None = None,
    n: int = 1,
    chat: bool | ChatConfig = False,
    speculation: SpeculationConfig | None = None,
    batching: BatchingConfig | None = None,
    listeners: Seq[Listener] = (),
    **options: Unpack[SamplingOptions],
) -> BatchResult:
    """Decode several prompts together and wait for all.

    Prompts are texts, fed as they are (messages of the user with ``chat=True``), lists of token
    ids, or lists of chat messages. All arguments and errors are those of
    ``stream_batch_generate``.

    Returns:
        ``.results`` in the order of the prompts, ``.texts``, and ``.stats`` over all.
    """
    with stream_batch_generate(
        model,
        tokenizer,
        prompts,
        draft_model=draft_model,
        sampling=sampling,
        n=n,
        chat=chat,
        speculation=speculation,
        batching=batching,
        listeners=listeners,
        **options,
    ) as stream:
        for _ in stream:
            pass
        return stream.result()


def stream_generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams | None = None,
    chat: bool | ChatConfig = False,
    speculation: SpeculationConfig | None = None,
    cache: CacheOptions = PLAIN_CACHES,
    listeners: Seq[Listener] = (),
    **options: Unpack[SamplingOptions],
) -> Iterator[GenerationChunk]:
    """Decode one prompt; yields a chunk a token, ``chunk.text`` being what is new.

    The prompt and options are checked at once, not at the first chunk. Arguments and errors are
    those of ``generate``.
    """
    return stream_batch_generate(
        model,
        tokenizer,
        [prompt],
        draft_model=draft_model,
        sampling=with_options(sampling, options, "stream_generate"),
        chat=chat,
        speculation=speculation,
        batching=BatchingConfig(batch_size=1, cache=cache),
        listeners=listeners,
    )


@overload
def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    draft_model: DraftModel = ...,
    sampling: SamplingParams | None = ...,
    n: None = ...,
    chat: bool | ChatConfig = ...,
    speculation: SpeculationConfig | None = ...,
    cache: CacheOptions = ...,
    listeners: Seq[Listener] = ...,
    **options: Unpack[SamplingOptions],
) -> GenerationResult: ...
@overload
def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    n: int,
    draft_model: DraftModel = ...,
    sampling: SamplingParams | None = ...,
    chat: bool | ChatConfig = ...,
    speculation: SpeculationConfig | None = ...,
    cache: CacheOptions = ...,
    listeners: Seq[Listener] = ...,
    **options: Unpack[SamplingOptions],
) -> list[GenerationResult]: ...
def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams | None = None,
    n: int | None = None,
    chat: bool | ChatConfig = False,
    speculation: SpeculationConfig | None = None,
    cache: CacheOptions = PLAIN_CACHES,
    listeners: Seq[Listener] = (),
    **options: Unpack[SamplingOptions],
) -> GenerationResult | list[GenerationResult]:
    """Decode one prompt and wait for it::

        generate(model, tokenizer, "Why is the sky blue?", chat=True, max_tokens=200).text

    Args:
        model: the target, as ``load`` returned it.
        tokenizer: its tokenizer; None if the prompt is token ids.
        prompt: a text, a list of token ids, or a list of chat messages. A text is fed *as it is*;
            messages go through the tokenizer's chat template.
        draft_model: a smaller model that guesses ahead, or its (model, tokenizer) pair. The
            output is the same without it, only slower.
        sampling: ``SamplingParams``: how to choose tokens and when to stop. Greedy, at most 100
            tokens, where nothing is said.
        n: so many texts of the prompt, with the seeds SEED, SEED + 1, ...: then a list of results.
            They run side by side, and the prompt is read once.
        chat: True makes a text a message of the user; ``ChatConfig`` says more.
        speculation: how far to guess.
        cache: what is kept of tokens that were read: ``CacheOptions(kv_bits=8)``.
        listeners: told what happens at every step.
        options: fields of ``SamplingParams``: ``max_tokens``, ``temperature``, ``top_p``,
            ``top_k``, ``min_p``, ``seed``, ``stop``, ``stop_token_ids``, ``ignore_eos``.

    Raises:
        InvalidRequest, PromptTooLong, TokenizerMismatch, UnsupportedModel: as
            ``stream_batch_generate``.
    """
    rows = n if isinstance(n, int) and n > 0 else 1
    batch = batch_generate(
        model,
        tokenizer,
        [prompt],
        draft_model=draft_model,
        sampling=sampling,
        n=1 if n is None else n,
        chat=chat,
        speculation=speculation,
        batching=BatchingConfig(batch_size=min(rows, BatchingConfig.batch_size), cache=cache),
        listeners=listeners,
        **options,
    )
    return batch.results[0] if n is None else list(batch.results)
