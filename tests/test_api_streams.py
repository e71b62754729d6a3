"""Streams of the public functions: order, early ends, and what is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlx_spec import (
    BatchingConfig,
    SamplingParams,
    stream_batch_generate,
    stream_generate,
)
from mlx_spec.results import GenerationChunk
from tests.api_support import (
    PROMPTS,
    SIX,
    draft_model,
    model,
    tokenizer,
    truth,
)


@pytest.mark.parametrize("draft", [False, True])
def test_chunks_join_to_the_results(draft: bool) -> None:
    """Stops a token without a chunk, text given out twice or after its end, and wrong counts."""
    sampling = [
        SamplingParams(max_tokens=24, stop=(("e", "\n", "never said")[i % 3],), seed=i)
        for i in range(len(PROMPTS))
    ]
    stream = stream_batch_generate(
        model(),
        tokenizer(),
        PROMPTS,
        draft_model=draft_model() if draft else None,
        sampling=sampling,
        speculation=SIX,
        batching=BatchingConfig(batch_size=3),
    )
    chunks: list[list[GenerationChunk]] = [[] for _ in PROMPTS]
    for chunk in stream:
        chunks[chunk.index].append(chunk)
    for own, result in zip(chunks, stream.result().results, strict=True):
        assert "".join(chunk.text for chunk in own) == result.text
        assert [chunk.token for chunk in own] == result.token_ids
        assert [chunk.generation_tokens for chunk in own] == list(range(1, len(own) + 1))
        assert {chunk.prompt_tokens for chunk in own} == {result.prompt_tokens}
        assert [chunk.finish_reason for chunk in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == result.finish_reason is not None
    assert any(chunk.from_draft for own in chunks for chunk in own) == draft


def test_draft_flags_tell_runs_from_corrections() -> None:
    """Stops flags shifted by one: each pass ends with a token of the target's own."""
    one = list(
        stream_generate(
            model(),
            tokenizer(),
            "x",
            draft_model=model(),
            speculation=replace(SIX, num_draft_tokens=3),
            sampling=SamplingParams(max_tokens=11, ignore_eos=True),
        )
    )
    assert [chunk.from_draft for chunk in one][:8] == [True, True, True, False] * 2


def test_a_stream_begins_before_the_text_ends() -> None:
    """Stops a stream that collects everything first."""
    sampling = SamplingParams(max_tokens=400, ignore_eos=True)
    stream = stream_batch_generate(model(), tokenizer(), PROMPTS, sampling=sampling)
    next(stream)
    assert stream.stats.steps <= 2
    stream.close()
    assert stream.stats.generation_tokens < 40


def test_a_closed_stream_keeps_what_it_has() -> None:
    """Stops a cancelled request that loses its text, hangs, or is called finished."""
    sampling = SamplingParams(max_tokens=60, ignore_eos=True)
    with stream_batch_generate(
        model(),
        tokenizer(),
        PROMPTS,
        sampling=sampling,
        draft_model=draft_model(),
        batching=BatchingConfig(batch_size=4),
    ) as stream:
        seen = [""] * len(PROMPTS)
        for count, chunk in enumerate(stream):
            seen[chunk.index] += chunk.text
            if count == 50:
                break
    stream.close()
    assert list(stream) == []
    result = stream.result()
    assert {one.finish_reason for one in result.results} == {"cancelled"}
    for place, one in enumerate(result.results):
        assert one.text.startswith(seen[place])
        assert one.token_ids == truth(PROMPTS[place], sampling).token_ids[: one.generation_tokens]
    assert [one.generation_tokens for one in result.results[4:]] == [0, 0]
    assert result.stats.generation_tokens == sum(one.generation_tokens for one in result.results)


@pytest.mark.parametrize("limit", [12, 200])
def test_a_cancelled_result_is_consistent(limit: int) -> None:
    """Stops tokens without their text, and a row called finished whose end nobody was given:
    a step hands out the rows one after the other, and the caller may leave in between.
    """
    sampling = SamplingParams(max_tokens=limit, ignore_eos=True)
    stream = stream_batch_generate(
        model(), tokenizer(), PROMPTS, sampling=sampling, draft_model=model(), speculation=SIX
    )
    chunks: list[list[GenerationChunk]] = [[] for _ in PROMPTS]
    for chunk in stream:
        chunks[chunk.index].append(chunk)
        if chunk.generation_tokens == 12:
            break
    stream.close()
    for own, result in zip(chunks, stream.result().results, strict=True):
        assert [chunk.token for chunk in own] == result.token_ids
        ended = bool(own) and own[-1].finish_reason is not None
        assert result.finish_reason == ("length" if ended else "cancelled")


def test_closing_before_the_first_token_cancels_all() -> None:
    """Stops an error, or a hang, where nothing has begun."""
    stream = stream_batch_generate(model(), tokenizer(), PROMPTS)
    stream.close()
    result = stream.result()
    assert list(stream) == []
    assert {one.finish_reason for one in result.results} == {"cancelled"}
    assert set(result.texts) == {""}
    assert result.stats.generation_tps == result.stats.mean_acceptance_length == 0
