"""Several texts of one prompt: it is read once, in any cache, and each text is what it is alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import (
    BatchedMLXGenerator,
    BatchingConfig,
    InvalidRequest,
    SamplingParams,
    SpeculationConfig,
)
from mlx_spec.api import batch_generate, generate, stream_batch_generate, stream_generate
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import MAX_RIDE
from mlx_spec.decoding.prompt_share import PromptCopy, SharedPrompts, share_prompts
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy
from tests.models import VOCABULARY
from tests.preemption import serve
from tests.scenario import _new, noisy_draft, plain_alone, target
from tests.test_shared_beginnings import count_fed
from tests.waiting import PATIENCE

Patch = pytest.MonkeyPatch
LONG = [(7 * i + 3) % VOCABULARY for i in range(45)]
SAMPLED = SamplingParams(max_tokens=9, temperature=0.9, seed=5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mamba2"])
@pytest.mark.parametrize("prompt", [LONG, [3, 5, 7]], ids=["long", "short"])
def test_a_prompt_is_read_once(family: str, prompt: list[int], monkeypatch: Patch) -> None:
    """Four texts over three rows: the last one finds the prompt kept until it comes."""
    alone = [
        plain_alone(target(family), tuple(prompt), SamplingParams(9, 0.9, seed=seed))
        for seed in range(5, 9)
    ]
    fed = count_fed(monkeypatch)
    batching = BatchingConfig(batch_size=3, prefix_cache_bytes=0, prefill_interleave=16)
    batch = batch_generate(target(family), None, [prompt], n=4, sampling=SAMPLED, batching=batching)
    assert [one.token_ids for one in batch.results] == alone
    assert [one.seed for one in batch.results] == [5, 6, 7, 8]
    read = len(prompt) - 1
    assert sorted(one.reused_tokens for one in batch.results) == [0, read, read, read]
    assert fed[id(target(family))] < 2 * read + 4 * 12


def test_beside_others_and_with_drafts(monkeypatch: Patch) -> None:
    """Two prompts thrice each; they come while rows decode, and one reader is given up."""
    prompts = [LONG, LONG[::-1]]
    alone = [
        plain_alone(target("llama"), tuple(prompt), SamplingParams(9, 0.9, seed=seed))
        for prompt in prompts
        for seed in range(5, 8)
    ]
    with BatchedMLXGenerator(
        target("llama"),
        None,
        draft_model=noisy_draft("llama"),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        batching=BatchingConfig(batch_size=3, batch_timeout=0, prefill_interleave=16),
    ) as generator:
        running = generator.submit([1, 2, 3], max_tokens=60)
        results = generator.generate(prompts, SAMPLED, n=3)
        running.result(PATIENCE)
        assert [one.token_ids for one in results] == alone
        assert sorted(one.reused_tokens for one in results) == [0, 0, 44, 44, 44, 44]
        assert sum(one.drafted for one in results) > 0
    stream = stream_batch_generate(target("llama"), None, [LONG], n=3, sampling=SAMPLED)
    engine, first = stream._engine, stream._requests[0]
    engine._admit(True)
    engine.decoder._members.change()
    engine.cancel(first)  # which all others wait for
    for _ in stream:
        pass
    assert [one.token_ids for one in stream.result().results[1:]] == alone[1:3]
    copy = first.share.of(engine.decoder.runner.pool)
    assert copy.state is None or copy.left == {id(first)}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mamba2"])
@pytest.mark.parametrize("late", [0, 5], ids=["at once", "late"])
def test_a_draft_reads_it_once_too(family: str, late: int, monkeypatch: Patch) -> None:
    """Also where rows have said something by then; a draft that is the target is always right, if
    what it took over is right."""
    model, read = target(family), 0
    draft = _new(family)
    draft.update(model.parameters())
    forward = ModelRunner.forward

    def counted(self: ModelRunner, rows: Rows) -> mx.array:
        nonlocal read
        if self.model is draft and rows.tokens.shape[1] > MAX_RIDE:
            read += rows.tokens.size
        return forward(self, rows)

    monkeypatch.setattr(ModelRunner, "forward", counted)
    decoder = SpeculativeDecoder(
        model,
        draft_model=draft,
        policy=CyclingPolicy([0] * late + [3] * 99),
        batching=BatchingConfig(batch_size=3, prefix_cache_bytes=0),
    )
    rows = [Sequence(list(LONG), SamplingParams(14, 0.9, seed=seed)) for seed in range(5, 9)]
    share_prompts(rows)
    serve(decoder, rows)
    for row in rows:
        assert row.tokens == plain_alone(model, tuple(LONG), row.sampling)
        assert row.accepted == row.drafted > 0
    assert 0 < read <= len(LONG)
    assert rows[0].share.of(draft_pool(decoder)).state is None  # all have it


def draft_pool(decoder: SpeculativeDecoder) -> KVCachePool:
    return decoder.runners[1].pool


def test_one_prompt_several_texts_of_the_functions_for_one() -> None:
    """A list where a number is asked for, be it one; side by side, and read once."""
    alone = [
        plain_alone(target("llama"), tuple(LONG), SamplingParams(9, 0.9, seed=seed))
        for seed in range(5, 8)
    ]
    results = generate(target("llama"), None, LONG, n=3, sampling=SAMPLED)
    assert [one.token_ids for one in results] == alone
    assert sorted(one.reused_tokens for one in results) == [0, 44, 44]
    (single,) = generate(target("llama"), None, LONG, n=1, sampling=SAMPLED)
    assert single.token_ids == generate(target("llama"), None, LONG, sampling=SAMPLED).token_ids
    with BatchedMLXGenerator(target("llama"), None) as generator:
        streams = generator.submit(LONG, SAMPLED, n=3, request_id="mine")
        assert [stream.request_id for stream in streams] == ["mine-0", "mine-1", "mine-2"]
        streams[1].cancel()
        made = [stream.result(PATIENCE) for stream in streams]
        assert [one.token_ids for one in made[::2]] == alone[::2]
        assert made[1].finish_reason in ("cancelled", "length")
        (only,) = generator.submit(LONG, SAMPLED, n=1, request_id="one")
        assert (only.request_id, only.result(PATIENCE).token_ids) == ("one", alone[0])
        with pytest.raises(InvalidRequest, match="n=2 greedy texts"):
            generator.submit(LONG, n=2)
    with pytest.raises(InvalidRequest, match="streamed by stream_batch_generate"):
        stream_generate(target("llama"), None, LONG, n=3)  # type: ignore[call-arg]


def test_its_place_is_another_s(monkeypatch: Patch) -> None:
    """Mutant: what is taken over lacks a token."""
    right = SharedPrompts.read

    def planted(self: SharedPrompts, sequence: Any, slot: int, seen: int) -> None:
        right(self, sequence, slot, seen)
        copy = sequence.share.of(self._pool) if sequence.share else PromptCopy([])
        if copy.state is not None:
            copy.state = self._pool.describe(slot, 1, seen)

    monkeypatch.setattr(SharedPrompts, "read", planted)
    batch = batch_generate(target("llama"), None, [LONG], n=2, sampling=SAMPLED)
    alone = plain_alone(target("llama"), tuple(LONG), SamplingParams(9, 0.9, seed=6))
    assert batch.results[1].token_ids != alone


def test_greedy_texts_are_all_the_same() -> None:
    with pytest.raises(InvalidRequest, match="n=2 greedy texts"):
        batch_generate(target("llama"), None, [[1]], n=2)
    with pytest.raises(InvalidRequest, match="n=0, expected an integer >= 1"):
        batch_generate(target("llama"), None, [[1]], n=0)
