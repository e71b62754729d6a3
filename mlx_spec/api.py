"""The functions people call: ``generate``, ``stream_generate``, ``batch_generate`` and
``stream_batch_generate``.

They check and encode prompts, build a decoder and let a ``BatchStream`` run it. All four are that
one path; a single prompt is a batch of one.

Example::

    model, tokenizer = load("demo")
    result = generate(model, tokenizer, "def read_", draft_model=load("demo-draft"))
    print(result.text, result.acceptance_rate)
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.batching.engine import Engine
from mlx_spec.batching.prompts import DraftModel, Prompt, drafting_model, make_sequences
from mlx_spec.batching.stream import BatchStream
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.events import Listener
from mlx_spec.results import BatchResult, GenerationChunk, GenerationResult


def stream_batch_generate(
    model: Any,
    tokenizer: Any,
    prompts: Seq[Prompt],
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams | Seq[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
    speculation: SpeculationConfig = SpeculationConfig(),  # noqa: B008
    batching: BatchingConfig = BatchingConfig(),  # noqa: B008
    listeners: Seq[Listener] = (),
) -> BatchStream:
    """Decode several prompts together; iterate the stream for chunks as they come.

    Args:
        model: the target, as ``load`` returned it.
        tokenizer: its tokenizer; None if all prompts are token ids (then there is no text).
        prompts: each a string, a list of token ids, or a list of chat messages.
        draft_model: a smaller model that guesses ahead, or its (model, tokenizer) pair: then the
            token maps are compared. The output is the same without it, only slower.
        sampling: options for all prompts, or one for each.
        speculation: how far to guess.
        batching: rows that run together; further prompts join as rows become free.
        listeners: told what happens at every step (``PerformanceLog`` is one).

    Raises:
        InvalidRequest: no prompts, an empty prompt, or options that do not match them.
        PromptTooLong: a prompt that fills the model's context.
        TokenizerMismatch: the draft's token map differs from the target's.
        UnsupportedModel: a model whose cache cannot roll back row by row.
    """
    sequences = make_sequences(model, tokenizer, prompts, sampling, batching.max_seq_len)
    engine = Engine(
        model,
        tokenizer,
        draft_model=drafting_model(draft_model, tokenizer),
        speculation=speculation,
        batching=batching,
        listeners=listeners,
    )
    return BatchStream(engine, sequences)


def batch_generate(
    model: Any,
    tokenizer: Any,
    prompts: Seq[Prompt],
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams | Seq[SamplingParams] = SamplingParams(),  # noqa: B008 (frozen)
    speculation: SpeculationConfig = SpeculationConfig(),  # noqa: B008
    batching: BatchingConfig = BatchingConfig(),  # noqa: B008
    listeners: Seq[Listener] = (),
) -> BatchResult:
    """Decode several prompts together and wait for all; arguments as ``stream_batch_generate``.

    Returns:
        ``.results`` in the order of the prompts, ``.texts``, and ``.stats`` over all.
    """
    with stream_batch_generate(
        model,
        tokenizer,
        prompts,
        draft_model=draft_model,
        sampling=sampling,
        speculation=speculation,
        batching=batching,
        listeners=listeners,
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
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
    speculation: SpeculationConfig = SpeculationConfig(),  # noqa: B008
    listeners: Seq[Listener] = (),
) -> Iterator[GenerationChunk]:
    """Decode one prompt; yields a chunk a token. Arguments as ``stream_batch_generate``.

    The prompt and options are checked at once, not at the first chunk.
    """
    return stream_batch_generate(
        model,
        tokenizer,
        [prompt],
        draft_model=draft_model,
        sampling=sampling,
        speculation=speculation,
        batching=BatchingConfig(batch_size=1),
        listeners=listeners,
    )


def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    draft_model: DraftModel = None,
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
    speculation: SpeculationConfig = SpeculationConfig(),  # noqa: B008
    listeners: Seq[Listener] = (),
) -> GenerationResult:
    """Decode one prompt and wait for it; arguments as ``stream_batch_generate``."""
    batch = batch_generate(
        model,
        tokenizer,
        [prompt],
        draft_model=draft_model,
        sampling=sampling,
        speculation=speculation,
        batching=BatchingConfig(batch_size=1),
        listeners=listeners,
    )
    return batch.results[0]
