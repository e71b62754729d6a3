"""Figures of prompts: each token once, reused ones out of the rate, and the seed that was used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig, batch_generate
from mlx_spec.batching.engine import Engine
from mlx_spec.sequence import Sequence
from tests.scenario import noisy_draft, target

LENGTHS = (113, 113, 120, 97)


def beginning(length: int, last: int) -> list[int]:
    return [1 + (7 * place) % 60 for place in range(length - 1)] + [last]


def test_reused_tokens_are_named_and_left_out_of_the_rate() -> None:
    """Stops a prompt speed that counts tokens nobody computed: five times the true one."""
    prompts = [beginning(n, 1 + i) for i, n in enumerate(LENGTHS)]
    result = batch_generate(
        target("llama"),
        None,
        prompts,
        sampling=SamplingParams(max_tokens=2),
        batching=BatchingConfig(prefix_cache_bytes=2**24, block_size=16),
    )
    stats = result.stats
    assert stats.prompt_tokens == sum(LENGTHS)
    # The shortest is fed; the others take its whole blocks over.
    assert stats.reused_tokens == 3 * 96 == sum(one.reused_tokens for one in result.results)
    assert stats.recomputed_tokens == 0
    assert stats.prompt_tps * stats.prompt_time == pytest.approx(sum(LENGTHS) - 3 * 96)
    assert "(288 reused)" in str(stats)


@pytest.mark.parametrize("after", [1, 6])
def test_a_preempted_row_s_prompt_is_counted_once(after: int) -> None:
    """Whether it had read all of its prompt, or a part: what is fed again is told apart."""
    batching = BatchingConfig(batch_size=1, prefill_step_size=32, memory_limit=None)
    engine = Engine(target("llama"), None, batching=batching)
    first = Sequence(beginning(120, 3), SamplingParams(max_tokens=8))
    engine.submit(first)
    for _ in range(after):
        engine.step(hurry=True)
    fed = engine.stats().prompt_tokens
    assert fed == (32 if after == 1 else 120)
    engine.submit(Sequence([5] * 9, SamplingParams(max_tokens=3), priority=5))
    engine.step(hurry=True)
    held = 32 if after == 1 else first.length - 1
    assert held == 32 or held > 120
    engine.decoder.drop_saved(first)
    while engine.busy:
        engine.step(hurry=True)
    stats = engine.stats()
    assert engine.scheduler.preempted == 1
    assert stats.prompt_tokens == 129
    # All that its slot held: a part of its prompt, or the whole with what it had said.
    assert stats.recomputed_tokens == held
    assert stats.reused_tokens == 0


def test_what_was_not_read_is_not_counted() -> None:
    """Stops a rate over tokens of a prompt that was cut short: ten times the true one."""
    engine = Engine(target("llama"), None, batching=BatchingConfig(prefill_step_size=32))
    request = Sequence(beginning(400, 3), SamplingParams(max_tokens=8))
    engine.submit(request)
    engine.step(hurry=True)
    engine.cancel(request)
    assert engine.stats().prompt_tokens == 32


@pytest.mark.parametrize("seed", [None, 7, 2**40 + 3])
def test_the_seed_in_a_result_repeats_its_text(seed: int | None) -> None:
    """Drawn or given, in any batch, with a draft or without."""
    prompts = [beginning(5 + i, 1 + i) for i in range(3)]
    sampling = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=seed)
    speculation = SpeculationConfig(num_draft_tokens=3, adaptive=False)
    model, draft = target("llama"), noisy_draft("llama")
    once = batch_generate(
        model, None, prompts, sampling=sampling, draft_model=draft, speculation=speculation
    ).results
    seeds = [result.seed for result in once]
    assert all(isinstance(one, int) for one in seeds)
    assert len(set(seeds)) == (3 if seed is None else 1)
    assert seed is None or seeds[0] == seed
    again = batch_generate(
        model, None, prompts[::-1], sampling=[replace(sampling, seed=one) for one in seeds[::-1]]
    ).results
    assert [result.token_ids for result in again[::-1]] == [result.token_ids for result in once]
