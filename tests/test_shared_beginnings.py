"""Prompts that begin alike: computed once for the target and once for the draft, and rightly so."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy
from tests.models import VOCABULARY, make_model
from tests.scenario import mlx_lm_greedy, target
from tests.test_generator import make_generator
from tests.waiting import PATIENCE


def test_a_shared_beginning_is_computed_once() -> None:
    """2 x 8 requests behind one system prompt: all but the first reuse its blocks."""
    system = [(7 * i + 3) % VOCABULARY for i in range(200)]
    prompts = [[*system, 5 + i, 9] for i in range(8)]
    sampling = SamplingParams(max_tokens=6)
    with make_generator(8, prefix_cache_bytes=2**24, block_size=8) as generator:
        first = generator.generate(prompts, sampling)
        second = generator.generate(prompts, sampling)
    with make_generator(8) as generator:
        alone = generator.generate(prompts, sampling)
    assert [r.token_ids for r in first] == [r.token_ids for r in alone]
    assert [r.token_ids for r in second] == [r.token_ids for r in alone]
    assert sorted(r.reused_tokens for r in first) == [0, *[200] * 7]
    assert all(r.reused_tokens >= 200 for r in second)
    assert all(r.reused_tokens == 0 for r in alone)


def test_the_draft_reuses_beginnings_too() -> None:
    """A draft that is the target is always right, if what it took over is right."""
    system = [(5 * i + 1) % VOCABULARY for i in range(100)]
    with BatchedMLXGenerator(
        target("llama"),
        None,
        draft_model=target("llama"),
        batching=BatchingConfig(
            batch_size=4, batch_timeout=0.02, prefix_cache_bytes=2**24, block_size=8
        ),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
    ) as generator:
        for wave in range(3):
            prompts = [[*system, i, wave] for i in range(4)]
            results = generator.generate(prompts, SamplingParams(max_tokens=9))
            assert all(result.accepted == result.drafted > 0 for result in results)


def count_fed(patch: pytest.MonkeyPatch) -> dict[int, int]:
    """Tokens that each model reads from now on, by the identity of the model."""
    fed: dict[int, int] = {}
    forward = ModelRunner.forward

    def counted(self: ModelRunner, rows: Rows) -> mx.array:
        fed[id(self.model)] = fed.get(id(self.model), 0) + rows.tokens.size
        return forward(self, rows)

    patch.setattr(ModelRunner, "forward", counted)
    return fed


@pytest.mark.parametrize("together", [True, False], ids=["at once", "one after another"])
def test_a_system_prompt_is_fed_once_to_target_and_draft(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six requests behind 1,000 tokens, all at once or while the earlier ones still run."""
    system = [(7 * i + 3) % VOCABULARY for i in range(1000)]
    prompts = [[*system, 5 + i, 9] for i in range(6)]
    sampling = SamplingParams(max_tokens=12)
    long = {"max_position_embeddings": 2048}
    models = make_model("llama", **long), make_model("llama", seed=1, num_hidden_layers=1, **long)
    alone = [mlx_lm_greedy(models[0], tuple(prompt), 12) for prompt in prompts]
    with BatchedMLXGenerator(
        models[0],
        None,
        draft_model=models[1],
        batching=BatchingConfig(
            batch_size=6, batch_timeout=0.2, prefix_cache_bytes=2**24, block_size=8
        ),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
    ) as generator:
        fed = count_fed(monkeypatch)
        if together:
            results = generator.generate(prompts, sampling)
        else:
            streams = []
            for prompt in prompts:
                streams.append(generator.submit(prompt, sampling))
                for _ in range(6):
                    next(streams[-1])  # it drafts by now, and so its draft has caught up
            results = [stream.result(PATIENCE) for stream in streams]
    assert [result.token_ids for result in results] == alone
    assert sum(result.reused_tokens for result in results) == 5 * 1000
    # The rest: 6 rows of at most 8 + 2 own prompt tokens and 12 steps 4 wide; 2,000 were twice.
    assert {1000 <= fed[id(model)] < 1500 for model in models} == {True}, fed


@pytest.mark.parametrize("plain", [0, 1, 3])
def test_a_draft_taken_over_late_is_right(plain: int) -> None:
    """Rows decode plainly first, so that the draft catches up with a step in flight.

    The draft is the target: each of its guesses is right if all that it took over is, and stands
    at the right positions.
    """
    batching = BatchingConfig(batch_size=4, prefix_cache_bytes=2**24, block_size=8)
    drafter = ModelDrafter(ModelRunner(target("llama"), 4), batching)
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=drafter,
        policy=CyclingPolicy([0] * plain + [3] * 9),
        batching=batching,
    )
    system = [(3 * i + 2) % VOCABULARY for i in range(60)]
    # Two beginnings, rows of several lengths, and one that begins like nobody.
    prompts = [[*system, 1], [*system[:33], 5, 6], [9] * 40, [*system, *range(20)]]
    sequences = [Sequence(prompt, SamplingParams(max_tokens=20)) for prompt in prompts]
    decoder.add(sequences)
    while decoder.busy:
        decoder.step()
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens == mlx_lm_greedy(target("llama"), tuple(prompt), 20)
        assert sequence.accepted == sequence.drafted > 0
