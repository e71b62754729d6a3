"""The public functions: what may go in, what comes out, and that a draft changes neither.

Most tests run a tiny random model over the embedded tokenizer: it speaks nonsense in 2048 tokens,
half characters included, and does so in milliseconds. The embedded pair itself runs in few.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_tokenizer

from mlx_spec import (
    BatchingConfig,
    SamplingParams,
    SpeculationConfig,
    batch_generate,
    generate,
    stream_batch_generate,
)
from mlx_spec.errors import PromptTooLong
from tests.api_support import (
    FOLDER,
    OFF,
    PROMPTS,
    SIX,
    TEMPLATE,
    batch,
    draft_model,
    ids,
    model,
    pair,
    tokenizer,
    tokens_of,
    truth,
)

# --- prompts ----------------------------------------------------------------------------------


def test_a_text_and_its_ids_are_the_same_prompt() -> None:
    """Stops special tokens added to one of them, and id types that numpy and mlx users have."""
    kinds: list[Any] = [
        PROMPTS[0],
        ids(PROMPTS[0]),
        tuple(ids(PROMPTS[0])),
        np.array(ids(PROMPTS[0])),
        mx.array(ids(PROMPTS[0])),
    ]
    result = batch(kinds, rows=3)
    assert len(set(result.texts)) == 1
    assert {one.prompt_tokens for one in result.results} == {len(ids(PROMPTS[0]))}


def test_chat_messages_go_through_the_template() -> None:
    """Stops a dictionary of arrays taken for token ids (transformers 5), messages without the
    opening of the answer, and a chat among plain prompts that is treated like them.
    """
    chat = [{"role": "user", "content": "Sort a list"}, {"role": "system", "content": "ok?"}]
    rendered = "[user] Sort a list\n[system] ok?\n[assistant] "
    result = batch_generate(
        model(),
        tokenizer(TEMPLATE),
        [chat, "x", rendered],
        sampling=SamplingParams(max_tokens=9),
    )
    assert result.results[0].prompt_tokens == len(ids(rendered))
    assert tokens_of(result)[0] == tokens_of(result)[2] != tokens_of(result)[1]


def test_without_a_tokenizer_there_are_tokens_only() -> None:
    """Stops a need for text where a pipeline works on ids; also that eos then ends nothing."""
    prompts = [ids(text) for text in PROMPTS]
    bare = batch_generate(model(), None, prompts, sampling=SamplingParams(max_tokens=20))
    full = batch(sampling=SamplingParams(max_tokens=20, ignore_eos=True))
    assert tokens_of(bare) == tokens_of(full)
    assert set(bare.texts) == {""}
    assert {result.finish_reason for result in bare.results} == {"length"}


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_results_come_in_the_order_of_the_prompts(rows: int) -> None:
    """Stops results in order of finishing: short and long ones alternate over fewer rows."""
    prompts = [*PROMPTS, *PROMPTS[::-1], *PROMPTS[:3]]
    sampling = [SamplingParams(max_tokens=3 + 17 * (i % 2) + i % 5) for i in range(len(prompts))]
    result = batch(prompts, rows=rows, sampling=sampling, draft_model=draft_model())
    for prompt, option, one in zip(prompts, sampling, result.results, strict=True):
        alone = truth(prompt, SamplingParams(max_tokens=24)).token_ids[: option.max_tokens]
        assert one.token_ids == alone
        assert one.text == tokenizer().decode(alone).rstrip("\ufffd")
        assert one.prompt_tokens == len(ids(prompt))
    assert result.texts == [one.text for one in result.results]


def test_one_option_for_all_is_that_option_for_each() -> None:
    """Stops a list of options that is read in another order than the prompts."""
    option = SamplingParams(max_tokens=11, temperature=0.9, seed=4)
    assert tokens_of(batch(sampling=option)) == tokens_of(batch(sampling=[option] * len(PROMPTS)))
    tuple_of = tuple(replace(option, max_tokens=n) for n in range(2, 2 + len(PROMPTS)))
    result = batch(sampling=tuple_of)
    assert [one.generation_tokens for one in result.results] == [2, 3, 4, 5, 6, 7]


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft", ["none", "noisy", "perfect"])
@pytest.mark.parametrize("rows", [1, 4])
def test_stop_texts_inside_a_run_end_it_there(draft: str, rows: int, temperature: float) -> None:
    """Stops text or tokens past a stop text that falls in the middle of an accepted run, and a
    stop text that is seen at other places with a draft than without.
    """
    sampling = SamplingParams(max_tokens=24, temperature=temperature, seed=3)
    options, expected = [], []
    for i, prompt in enumerate(PROMPTS):
        whole = truth(prompt, sampling)
        middle = len(whole.text) // 3 + i
        stop = whole.text[middle : middle + 1 + i]
        assert stop
        options.append(replace(sampling, stop=("never said", stop), ignore_eos=True))
        completing = next(
            count
            for count in range(1, 25)
            if stop in tokenizer().decode(whole.token_ids[:count]).rstrip("\ufffd")
        )
        expected.append((whole.text[: whole.text.find(stop)], whole.token_ids[:completing]))
    drafts = {"none": None, "noisy": draft_model(), "perfect": model()}
    result = batch(rows=rows, sampling=options, draft_model=drafts[draft])
    assert [(one.text, one.token_ids) for one in result.results] == expected
    assert {one.finish_reason for one in result.results} == {"stop"}
    assert all(one.generation_tokens == len(one.token_ids) for one in result.results)


@pytest.mark.parametrize("draft", [False, True])
def test_stop_tokens_end_the_tokens_and_are_no_text(draft: bool) -> None:
    """Stops a stop token that is printed, that is lost from the ids, or that is passed over."""
    sampling = SamplingParams(max_tokens=30)
    options, wholes = [], []
    for i, prompt in enumerate(PROMPTS):
        whole = truth(prompt, sampling).token_ids
        stop = whole[3 + 2 * i]
        options.append(replace(sampling, stop_token_ids=(2000, stop)))
        wholes.append(whole[: whole.index(stop) + 1])
    result = batch(sampling=options, draft_model=model() if draft else None)
    assert tokens_of(result) == wholes
    for one in result.results:
        assert one.finish_reason == "stop"
        text = tokenizer().decode(one.token_ids[:-1])
        assert one.text == text.rstrip("\ufffd")


def test_eos_ends_a_text_unless_ignored() -> None:
    """Stops an end-of-sequence token that only the first row, or nobody, looks for."""
    words = load_tokenizer(FOLDER)
    wholes = [truth(prompt, SamplingParams(max_tokens=25)).token_ids for prompt in PROMPTS]
    words.eos_token_ids = {whole[5 + i] for i, whole in enumerate(wholes)}
    ends = [
        next(i for i, token in enumerate(whole) if token in words.eos_token_ids) for whole in wholes
    ]
    for ignored in (False, True):
        sampling = SamplingParams(max_tokens=25, ignore_eos=ignored)
        result = batch_generate(
            model(), words, PROMPTS, sampling=sampling, draft_model=model(), speculation=SIX
        )
        reasons = {one.finish_reason for one in result.results}
        if ignored:
            assert tokens_of(result) == wholes
            assert reasons == {"length"}
        else:
            assert tokens_of(result) == [
                whole[: end + 1] for whole, end in zip(wholes, ends, strict=True)
            ]
            assert reasons == {"stop"}


@pytest.mark.parametrize("draft", [False, True])
def test_the_context_ends_a_text_with_length(draft: bool) -> None:
    """Stops positions past what the model was made for, for each row at its own place."""
    context = 40
    prompts = [[7] * length for length in (39, 38, 20, 1, 33)]
    result = batch_generate(
        model(context),
        None,
        prompts,
        draft_model=draft_model() if draft else None,
        sampling=SamplingParams(max_tokens=1000),
        speculation=SIX,
        batching=BatchingConfig(batch_size=3),
    )
    assert [one.generation_tokens for one in result.results] == [1, 2, 20, 39, 7]
    assert {one.finish_reason for one in result.results} == {"length"}
    for prompt, one in zip(prompts, result.results, strict=True):
        # The wide model is the same one; only its stated context differs.
        free = generate(model(), None, prompt, sampling=SamplingParams(max_tokens=39))
        assert one.token_ids == free.token_ids[: one.generation_tokens]


def test_prompts_that_fill_the_context_are_refused() -> None:
    """Stops a prompt that is cut, or that fails in the middle of the batch."""
    for length in (40, 41, 400):
        with pytest.raises(PromptTooLong, match=rf"prompt 2 of 2 has {length} .*context is 40"):
            batch_generate(model(40), None, [[1], [1] * length])


# --- a draft changes nothing ------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_embedded_pair_says_the_same_with_and_without_draft(temperature: float) -> None:
    """The promise, on real text: same tokens alone, in a batch, with any speculation."""
    target, words, draft = pair()
    prompts = PROMPTS[:3]
    sampling = [
        SamplingParams(max_tokens=12, temperature=temperature, seed=i, top_p=0.95)
        for i in range(len(prompts))
    ]
    alone = [
        generate(target, words, prompt, sampling=option).token_ids
        for prompt, option in zip(prompts, sampling, strict=True)
    ]
    for speculation in (SIX, SpeculationConfig(num_draft_tokens=3)):
        result = batch_generate(
            target, words, prompts, draft_model=draft, sampling=sampling, speculation=speculation
        )
        assert tokens_of(result) == alone
        assert speculation != SIX or result.stats.accepted > 0


def test_a_seed_gives_the_same_text_anywhere() -> None:
    """Stops noise that depends on the batch, on the row, or on the draft."""
    option = SamplingParams(max_tokens=18, temperature=1.0, seed=77)
    alone = generate(model(), tokenizer(), PROMPTS[2], sampling=option)
    for place in (0, 5):
        prompts = [*PROMPTS[:place], PROMPTS[2], *PROMPTS[place:]]
        others = SamplingParams(max_tokens=15, temperature=1.3)
        sampling = [option if i == place else others for i in range(len(prompts))]
        for draft in (None, draft_model()):
            result = batch(prompts, rows=3, sampling=sampling, draft_model=draft)
            assert result.results[place].token_ids == alone.token_ids
            assert result.results[place].text == alone.text


def test_without_a_seed_every_request_differs() -> None:
    """Stops one seed drawn for all rows, at import, or for each call alike."""
    option = SamplingParams(max_tokens=20, temperature=1.5)
    texts = {tuple(t) for _ in range(2) for t in tokens_of(batch(["x"] * 4, sampling=option))}
    assert len(texts) == 8
    seeds = [replace(option, seed=seed) for seed in (0, 1, 2**32, 2**32 + 1)]
    texts = {tuple(t) for t in tokens_of(batch(["x"] * 4, sampling=seeds))}
    assert len(texts) == 4


def test_speculation_switched_off_drafts_nothing() -> None:
    """Stops a draft model that works although it was told not to."""
    for speculation in (OFF, SpeculationConfig(num_draft_tokens=0)):
        result = batch(draft_model=draft_model(), speculation=speculation)
        assert result.stats.drafted == 0
        assert set(result.stats.draft_lengths) == {0}


# --- statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", [False, True])
def test_statistics_add_up(draft: bool) -> None:
    """Stops figures that count cut or dropped tokens, prompts twice, or rows as steps."""
    sampling = [SamplingParams(max_tokens=5 + 4 * i) for i in range(len(PROMPTS))]
    result = batch(rows=2, sampling=sampling, draft_model=draft_model() if draft else None)
    stats, results = result.stats, result.results
    assert stats.prompt_tokens == sum(one.prompt_tokens for one in results)
    assert stats.generation_tokens == sum(one.generation_tokens for one in results)
    assert stats.drafted == sum(one.drafted for one in results)
    assert stats.accepted == sum(one.accepted for one in results)
    assert stats.row_steps == sum(one.verify_steps for one in results)
    assert stats.steps == sum(stats.draft_lengths.values())
    assert stats.steps <= stats.row_steps <= 2 * stats.steps
    assert stats.prompt_time > 0
    assert stats.generation_time > 0
    assert stats.prompt_tps == stats.prompt_tokens / stats.prompt_time
    assert stats.generation_tps == stats.generation_tokens / stats.generation_time
    assert stats.peak_memory > 0
    for one in results:
        assert 0 <= one.accepted <= one.drafted
        assert one.verify_steps >= 1
        # Each pass emits its accepted tokens and one of the target's own, but perhaps the last.
        assert one.verify_steps - 1 <= one.generation_tokens - one.accepted <= one.verify_steps
        assert 0 < one.ttft <= one.duration
    if draft:
        assert 0 < stats.accepted < stats.drafted
        assert stats.mean_acceptance_length > 1.2
        assert stats.acceptance_rate == stats.accepted / stats.drafted
    else:
        assert stats.drafted == stats.accepted == 0
        assert stats.mean_acceptance_length == 1


def test_accepted_tokens_are_those_marked_as_drafted() -> None:
    """Stops two counts of one thing: the chunks' flags and the results' figures."""
    sampling = SamplingParams(max_tokens=30)
    with stream_batch_generate(
        model(), tokenizer(), PROMPTS, draft_model=draft_model(), speculation=SIX, sampling=sampling
    ) as stream:
        flags = [0] * len(PROMPTS)
        for chunk in stream:
            flags[chunk.index] += chunk.from_draft
    assert flags == [one.accepted for one in stream.result().results]
    assert sum(flags) > 0


def test_accepted_tokens_behind_a_stop_text_do_not_count() -> None:
    """Stops an acceptance rate that counts tokens which were cut off and never given out."""
    sampling = SamplingParams(max_tokens=24, ignore_eos=True)
    options = []
    for i, prompt in enumerate(PROMPTS):
        text = truth(prompt, sampling).text
        options.append(replace(sampling, stop=(text[len(text) // 2 + i :][:2],)))
    with stream_batch_generate(
        model(), tokenizer(), PROMPTS, draft_model=draft_model(), speculation=SIX, sampling=options
    ) as stream:
        flags = [0] * len(PROMPTS)
        for chunk in stream:
            flags[chunk.index] += chunk.from_draft
    assert flags == [one.accepted for one in stream.result().results]
