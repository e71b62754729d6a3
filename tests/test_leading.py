"""Rank 0 decides and another rank does as it does: over queues, each with the whole model.

Ranks that disagree about a pass would fail at their next meeting (``RankError``), and threads that
wait for each other at the safety net of the queue.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from mlx_spec import (
    BatchedMLXGenerator,
    BatchingConfig,
    SpeculationConfig,
    Structure,
    load,
    stream_batch_generate,
)
from mlx_spec.batching.commands import RequestRecord
from mlx_spec.batching.leading import make_engine
from mlx_spec.config import SamplingParams
from mlx_spec.decoding.drafters.predicted import PredictedText
from mlx_spec.errors import InvalidRequest, RankError, UnsupportedModel
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from mlx_spec.model.hidden import HiddenLayers
from mlx_spec.model.ranks import SeveralRanks
from mlx_spec.sequence import Sequence
from tests.linked import Linked, linked
from tests.models import VOCABULARY, make_model
from tests.scenario import noisy_draft
from tests.structures import small_tokenizer

PROMPTS = [[3, 9, 12], [40, 2], [7, 7, 7, 7, 30, 31, 2], [1], [22, 5, 17, 8]]
FIXED = SpeculationConfig(adaptive=False, num_draft_tokens=3)
LONG = SamplingParams(max_tokens=12)
ROWS = BatchingConfig(batch_size=3, batch_timeout=0.0)


def alone(prompts: list[list[int]], tokens: int, **options: Any) -> list[list[int]]:
    with BatchedMLXGenerator(make_model(), None, batching=ROWS) as generator:
        return [row.token_ids for row in generator.generate(prompts, max_tokens=tokens, **options)]


def generator_of(both: Linked, draft: Any = None, **options: Any) -> BatchedMLXGenerator:
    options = {"speculation": FIXED, "batching": ROWS, **options}
    return BatchedMLXGenerator(both.model, None, draft_model=draft, **options)


def new_draft() -> Any:
    """One of its own for each rank: they are run at the same time."""
    return noisy_draft.__wrapped__("llama")


def test_rows_come_and_go_on_both_ranks_alike() -> None:
    expected = alone(PROMPTS, 30)
    with linked(new_draft()) as both, generator_of(both, new_draft()) as generator:
        first = [generator.submit(prompt, max_tokens=30) for prompt in PROMPTS[:4]]
        taken = [next(first[0]).token for _ in range(3)]
        assert taken == expected[0][:3]
        gone = generator.submit([9, 9], max_tokens=400)
        last = generator.submit(PROMPTS[4], max_tokens=30, priority=3)
        next(gone)
        gone.cancel()
        rows = [stream.result(timeout=60) for stream in (*first, last)]
        stats = generator.stats()
    assert both.error is None
    assert [row.token_ids for row in rows] == expected
    assert gone.result().finish_reason == "cancelled"
    assert stats.generation.drafted > stats.generation.accepted > 0
    assert both.ranks.meetings == both.other.meetings > 10


def test_sampled_rows_and_fewer_rows() -> None:
    options = [SamplingParams(max_tokens=20, temperature=0.8, seed=seed) for seed in range(5)]
    with BatchedMLXGenerator(make_model(), None, batching=ROWS) as plain:
        expected = [row.token_ids for row in plain.generate(PROMPTS, options)]
    with linked(new_draft()) as both, generator_of(both, new_draft()) as generator:
        streams = [
            generator.submit(prompt, option)
            for prompt, option in zip(PROMPTS, options, strict=True)
        ]
        next(streams[0])
        generator.set_batch_size(1)
        next(streams[1])
        generator.set_batch_size(4)
        assert [stream.result(timeout=60).token_ids for stream in streams] == expected
    assert both.error is None


def test_a_generator_that_is_closed_in_the_middle_leaves_the_ranks_in_step() -> None:
    with linked() as both:
        with generator_of(both) as generator:
            streams = [generator.submit(prompt, max_tokens=500) for prompt in PROMPTS]
            next(streams[1])
        assert {stream.result().finish_reason for stream in streams} == {"cancelled"}
        with generator_of(both) as generator:
            rows = generator.generate(PROMPTS[:2], max_tokens=9)
        assert [row.token_ids for row in rows] == alone(PROMPTS[:2], 9)
    assert both.error is None


def test_the_last_row_goes_as_the_next_request_comes() -> None:
    """One meeting brings both; what is in flight is then dropped by all ranks, or by none."""
    first, second = Sequence([3, 9], SamplingParams(max_tokens=90)), Sequence(PROMPTS[0], LONG)
    with linked() as both:
        engine = make_engine(both.model, None, speculation=FIXED, batching=ROWS)
        engine.submit(first)
        for _ in range(3):
            engine.step(hurry=True)
        engine.cancel(first)
        engine.submit(second)
        while engine.busy:
            engine.step(hurry=True)
    assert both.error is None
    assert second.tokens == alone(PROMPTS[:1], 12)[0]


def test_requests_that_fail_under_a_step_are_no_fault_of_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who watches the ranks fails requests as soon as one is gone, whatever is computed then."""
    request = Sequence([3, 9], SamplingParams(max_tokens=90))
    with linked() as both:
        engine = make_engine(both.model, None, speculation=FIXED, batching=ROWS)
        engine.submit(request)
        for _ in range(3):
            engine.step(hurry=True)
        monkeypatch.setattr(SeveralRanks, "why_lost", lambda ranks: "rank 1 of 2 is gone")
        request.fail("rank 1 of 2 is gone")
        with pytest.raises(RankError, match="rank 1 of 2 is gone"):
            engine.step(hurry=True)


def test_a_stream_that_is_dropped_is_left_by_the_others_too() -> None:
    with linked() as both:
        stream = stream_batch_generate(both.model, None, PROMPTS, max_tokens=200, speculation=FIXED)
        next(stream)
        with pytest.raises(InvalidRequest, match="one at a time"):
            stream_batch_generate(both.model, None, PROMPTS[:1], max_tokens=2)
        del stream
        again = stream_batch_generate(both.model, None, PROMPTS[:2], max_tokens=9)
        assert {len(row.token_ids) for row in again.result().results} == {0}
        for _ in again:
            pass
        assert [row.token_ids for row in again.result().results] == alone(PROMPTS[:2], 9)
    assert both.error is None


def test_what_cannot_be_sent_is_refused() -> None:
    with linked() as both, generator_of(both) as generator:
        stream = generator.submit([1], logits_processors=[lambda tokens, logits: logits])
        with pytest.raises(InvalidRequest, match="functions of its own"):
            stream.result(timeout=60)
        assert generator.generate([[1]], max_tokens=3)[0].token_ids == alone([[1]], 3)[0]
    assert both.error is None


def test_another_draft_there_is_an_error_here() -> None:
    with linked() as both:
        with pytest.raises(RankError, match="no draft model"):
            generator_of(both, new_draft())
        with generator_of(both) as generator:
            assert len(generator.generate([[1]], max_tokens=3)[0].token_ids) == 3
    assert both.error is None


def test_no_tokenizer_there_is_an_error_here() -> None:
    """Ranks with one draft what a constraint forces, and others would not."""
    with linked() as both:
        with pytest.raises(RankError, match="this rank was given none"):
            BatchedMLXGenerator(both.model, small_tokenizer())
        with generator_of(both) as generator:
            assert len(generator.generate([[1]], max_tokens=3)[0].token_ids) == 3
    assert both.error is None


class MiddleHead(DraftHead):
    """Reads what its target's first layer gives."""

    def reads(self, layers: int) -> HiddenLayers:
        return HiddenLayers(final=False, layers=(0,))


@pytest.mark.parametrize("draft", ["head", "self"])
def test_layers_that_one_rank_has_draft_on_none(draft: str) -> None:
    heads = [MiddleHead(HeadConfig(32, 48, 4, 2, 8, VOCABULARY)) for _ in range(2)]
    given = heads if draft == "head" else [None, None]
    words = {"head": "head reads layers 0, and each of 2 ranks", "self": "draft='self' runs layers"}
    with (
        linked(given[0], "pipeline") as both,
        pytest.raises(UnsupportedModel, match=words[draft]),
    ):
        generator_of(both, given[1], speculation=SpeculationConfig(draft=draft))
    assert both.error is None


def test_ranks_that_describe_other_passes_say_so() -> None:
    with linked() as both:
        own = both.other.note
        both.other.note = lambda *facts: own(*facts, 1)  # type: ignore[method-assign]
        stream = stream_batch_generate(both.model, None, [[1, 2, 3]], max_tokens=5)
        next(stream)
        both.thread.join(60)
    assert isinstance(both.error, RankError)
    assert "other passes" in str(both.error)


def test_a_rank_that_follows_makes_no_engine_of_its_own() -> None:
    with linked() as both, pytest.raises(InvalidRequest, match=r"call follow\(model"):
        BatchedMLXGenerator(both.follower._model, None)


def test_a_request_is_sent_whole() -> None:
    """Its drawn seed, its prediction, its constraint; what each rank has of its own stays."""
    tokenizer = load("demo")[1]
    structure = Structure.choices(["yes", "no"])
    sampling = SamplingParams(temperature=0.8, structure=structure, stop="end")
    prediction = PredictedText([5, 6, 7])
    request = Sequence([3, 4], sampling, 9, frozenset({2}), 1, priority=4, request_id="one")
    request.prediction, request.sink = prediction, object()  # type: ignore[assignment]
    sent = pickle.loads(pickle.dumps(RequestRecord.of(0, request))).made(tokenizer)
    assert (sent.seed, sent.prompt, sent.max_new_tokens) == (request.seed, [3, 4], 9)
    assert (sent.priority, sent.request_id, sent.stop_ids) == (4, "one", frozenset({2}))
    assert sent.sampling == sampling
    assert sent.prediction.tokens == prediction.tokens
    assert sent.guide is not None
    assert sent.sink is None
