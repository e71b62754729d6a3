"""First steps that read short prompts, too: the same texts, a pass less, only where it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, CacheOptions, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.opening import MOST_TOKENS
from mlx_spec.decoding.prompt_share import share_prompts
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.opening_runs import (
    LENGTHS,
    again,
    apart,
    decoder_of,
    drafting,
    prompt,
    requests,
    right,
    run,
)
from tests.scenario import noisy_draft, target


@pytest.fixture(scope="module", autouse=True)
def texts() -> list[list[int]]:
    """Before bugs are planted, and by passes over prompts: what rows with a share get."""
    decoder, _ = decoder_of(batching=BatchingConfig(batch_size=1))
    found = []
    for row in requests():
        share_prompts([row, Sequence(row.prompt)])  # a shared prompt is read apart
        found += run(decoder, [row])
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_batch_that_begins_together_reads_its_prompts_in_its_first_step(family: str) -> None:
    """Ragged texts and drafts, greedy and sampled rows; every slot is looked at after each step."""
    decoder, passes = drafting(family, debug=True)
    rows = requests()
    assert run(decoder, rows) == right(rows, family)
    meter = decoder.meter
    assert not apart(passes)
    assert passes[0].uniform
    assert passes[0].limit >= max(LENGTHS)
    assert meter.prompt_tokens == sum(LENGTHS)
    assert 0 < meter.prompt_seconds < meter.seconds
    assert meter.accepted > 0


def test_one_after_the_other_and_plain_it_is_a_pass_a_request(texts: list[list[int]]) -> None:
    decoder, passes = decoder_of(batching=BatchingConfig(batch_size=1))
    rows = requests()
    for row, text in zip(rows, texts, strict=True):
        assert run(decoder, [row]) == [text]
    assert not apart(passes)
    assert decoder.meter.steps == sum(len(row.tokens) for row in rows)


def test_by_default_a_call_reads_short_prompts_so() -> None:
    """Through the public face: with a draft model, and behind requests that have ended."""
    import mlx_spec

    passes: list[Rows] = []
    forward = ModelRunner.forward

    def noting(self: ModelRunner, rows: Rows) -> mx.array:
        if self.model is target("llama"):
            passes.append(rows)
        return forward(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRunner, "forward", noting)
        made = mlx_spec.batch_generate(
            target("llama"),
            None,
            [prompt(length, length) for length in LENGTHS],
            draft_model=noisy_draft("llama"),
            sampling=SamplingParams(max_tokens=6),
            batching=BatchingConfig(batch_size=2),
        )
    assert not passes[0].packing or len(passes[0].packing.rows) > 2
    assert passes[0].tentative
    assert made.stats.prompt_tokens == sum(LENGTHS)


REFUSED: dict[str, Callable[[], tuple[SpeculativeDecoder, list[Rows], list[Sequence]]]] = {
    "too many tokens": lambda: (*decoder_of(), requests((MOST_TOKENS - 4, 3, 2))),
    "whole blocks are kept": lambda: (
        *decoder_of(batching=BatchingConfig(block_size=4, prefix_cache_bytes=2**20)),
        requests((6, 3)),
    ),
    "log-probabilities of the prompt": lambda: (
        *decoder_of(),
        requests((6, 3), prompt_logprobs=True),
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_elsewhere_prompts_are_read_apart(why: str) -> None:
    decoder, passes, rows = REFUSED[why]()
    expected = right(rows)
    assert run(decoder, rows) == expected
    assert apart(passes)


def test_a_shared_prompt_is_read_once() -> None:
    decoder, passes = decoder_of()
    rows = [Sequence(prompt(9, 1), SamplingParams(max_tokens=3, seed=i)) for i in range(3)]
    share_prompts(rows)
    run(decoder, rows)
    assert [one.tokens.shape for one in passes[:2]] == [(1, 8), (3, 1)]


def test_drafts_of_the_target_s_own_layers_find_prompts_in_its_slots() -> None:
    decoder, passes = decoder_of(
        speculation=SpeculationConfig(draft="self", draft_layers=(0,)), policy=RaggedPolicy()
    )
    rows = requests()
    assert run(decoder, rows) == right(rows)
    assert passes[0].tokens.shape[1] < max(LENGTHS)


def test_over_quantized_caches() -> None:
    cache = CacheOptions(kv_bits=8, kv_group_size=32)
    model = make_model("llama", head_dim=32)

    def said(size: int, rows: list[Sequence]) -> list[list[int]]:
        batching = BatchingConfig(batch_size=size, cache=cache)
        return run(SpeculativeDecoder(model, batching=batching), rows)

    alone = [said(1, [row])[0] for row in requests()]
    assert said(len(LENGTHS), requests()) == alone


@pytest.mark.parametrize("save", [False, True])
def test_who_goes_before_the_first_step_has_left_nothing(
    save: bool, texts: list[list[int]]
) -> None:
    """Stops garbage from being saved of a slot that nobody has written to."""
    decoder, _ = drafting()
    rows = requests()
    decoder.add(rows)
    with decoder.device.work():
        decoder._members.change()
        decoder._members.fill()
    assert decoder._state.opening
    assert decoder._members.cached == [0] * len(rows)
    decoder.suspend(rows[2], save=save)
    decoder.remove(rows[3])
    rows[3].cancel()
    for _ in range(3):
        decoder.step()
    decoder.add([rows[2]])
    while decoder.busy:
        decoder.step()
    assert [row.tokens for row in rows[:3]] == texts[:3]
    assert rows[4].tokens == texts[4]


def test_newcomers_wait_for_the_first_step_and_then_join(texts: list[list[int]]) -> None:
    decoder, passes = drafting()
    rows = requests()
    decoder.add(rows[:2])
    with decoder.device.work():
        decoder._members.change()
        decoder._members.fill()
    decoder.add(rows[2:])
    while decoder.busy:
        decoder.step()
    assert [row.tokens for row in rows] == texts
    assert passes[0].tokens.shape[0] == 2


def test_a_first_step_that_raises_is_taken_again(texts: list[list[int]]) -> None:
    decoder, passes = drafting()
    commit, failed = decoder.runner.commit, list[int]()

    def raising(kept: mx.array) -> None:
        commit(kept)
        if not failed:
            failed.append(1)
            raise RuntimeError("planted")

    decoder.runner.commit = raising  # type: ignore[method-assign]
    assert again(decoder, requests()) == texts
    assert failed
    assert passes[1].uniform
    assert passes[1].tentative


def test_prices_learn_nothing_of_a_first_step() -> None:
    """Its prompts' part is theirs: policies would take it for what drafts cost."""
    heard: list[Any] = []

    class Hearing(RaggedPolicy):
        def observe(self, report: Any) -> None:
            heard.append(report)

    drafter = ModelDrafter(ModelRunner(noisy_draft("llama"), len(LENGTHS)))
    decoder, _ = decoder_of(drafter=drafter, policy=Hearing())
    run(decoder, requests())
    assert not heard[0].clean
    assert heard[1].clean
    assert heard[0].tokens == len(LENGTHS) + sum(heard[0].lengths)
