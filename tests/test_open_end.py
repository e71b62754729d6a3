"""``max_tokens=None``: to the end of the context, in what memory there is, beside others."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from mlx_spec import (
    BatchingConfig,
    GenerationResult,
    InvalidRequest,
    SamplingParams,
    SpeculationConfig,
    generate,
)
from mlx_spec.api import batch_generate
from mlx_spec.batching import reservations
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.scheduler import Scheduler
from mlx_spec.sequence import Sequence
from tests.models import make_model
from tests.scenario import mlx_lm_greedy, noisy_draft, target

Patch = pytest.MonkeyPatch
CONTEXT = 80
OPEN = SamplingParams(max_tokens=None)
PROMPTS = [[3, 5, 7], [11] * 9, [2, 4, 6, 8]]


@cache
def model() -> Any:
    return make_model("llama", max_position_embeddings=CONTEXT)


@cache
def alone(index: int) -> GenerationResult:
    """A prompt's text to the end of the context, its limit given as a number."""
    return generate(model(), None, PROMPTS[index], max_tokens=CONTEXT)


def run(*, tokens: int | None, preemption: bool = True) -> tuple[list[GenerationResult], Engine]:
    """All prompts together, where so many tokens fit."""
    batching = BatchingConfig(
        batch_size=3, max_batch_tokens=tokens, enable_preemption=preemption, prefix_cache_bytes=0
    )
    engine = Engine(model(), None, draft_model=noisy_draft("llama"), batching=batching)
    rows = [Sequence(list(prompt), OPEN, CONTEXT - len(prompt)) for prompt in PROMPTS]
    engine.submit(*rows)
    while engine.busy:
        engine.step(hurry=True)
        taken = sum(row.reserved for row in engine.scheduler.running)
        assert tokens is None or taken <= tokens
    return rows, engine  # type: ignore[return-value]


def test_it_goes_to_the_end_of_the_context() -> None:
    for value in (None, -1):
        result = generate(model(), None, PROMPTS[0], max_tokens=value)
        assert result.prompt_tokens + result.generation_tokens == CONTEXT
        assert result.finish_reason == "length"
        assert result.token_ids == alone(0).token_ids
    short = batch_generate(
        model(), None, PROMPTS, sampling=OPEN, batching=BatchingConfig(max_seq_len=24)
    )
    assert [r.prompt_tokens + r.generation_tokens for r in short.results] == [24] * 3


@pytest.mark.parametrize("family", ["gemma3_text", "mamba2", "lfm2"])
def test_windows_and_states_go_there_together_with_drafts(family: str) -> None:
    results = batch_generate(
        target(family),
        None,
        PROMPTS,
        draft_model=noisy_draft(family),
        sampling=OPEN,
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        batching=BatchingConfig(batch_size=2, max_seq_len=CONTEXT),
    ).results
    for prompt, one in zip(PROMPTS, results, strict=True):
        left = CONTEXT - len(prompt)
        assert one.token_ids == mlx_lm_greedy(target(family), tuple(prompt), left)
        assert 0 < one.accepted < one.drafted


@pytest.mark.parametrize("room", [None, 3 * (CONTEXT + 60), CONTEXT + 60, CONTEXT + 20])
def test_several_share_what_there_is(room: int | None, monkeypatch: Patch) -> None:
    """They start together, grow, make room for the first, and all come to their ends."""
    monkeypatch.setattr(reservations, "AHEAD", 16)
    rows, engine = run(tokens=room)
    assert [row.tokens for row in rows] == [alone(i).token_ids for i in range(3)]
    assert {row.finish_reason for row in rows} == {"length"}
    preempted = engine.scheduler.preempted
    assert preempted == 0 if room is None or room > 2 * CONTEXT else preempted > 0
    assert max(row.reserved for row in rows) > 16 + CONTEXT // 2


def test_memory_for_less_than_the_context_cuts_it(monkeypatch: Patch) -> None:
    """Nothing is refused for what it might come to; what is there is used up."""
    monkeypatch.setattr(reservations, "AHEAD", 16)
    rows, engine = run(tokens=60)
    for index, row in enumerate(rows):
        assert row.tokens == alone(index).token_ids[: len(row.tokens)]
        margin = engine.decoder.speculation.margin(row.guesses)
        assert len(row.prompt) + len(row.tokens) == 60 - margin
        assert row.finish_reason == "length"


def test_where_nobody_may_be_preempted_it_ends(monkeypatch: Patch) -> None:
    monkeypatch.setattr(reservations, "AHEAD", 16)
    rows, engine = run(tokens=CONTEXT + 60, preemption=False)
    assert engine.scheduler.preempted == 0
    for index, row in enumerate(rows):
        assert row.tokens == alone(index).token_ids[: len(row.tokens)]
    assert {row.finish_reason for row in rows} == {"length"}
    assert min(len(row.tokens) for row in rows) < CONTEXT - 10


def test_what_cannot_hold_the_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="can never fit"):
        run(tokens=10)


def test_growing_without_asking_is_noticed(monkeypatch: Patch) -> None:
    """Mutant: nobody makes room."""

    def planted(self: Scheduler[Sequence], request: Sequence, reserved: int, now: float) -> Any:
        request.reserve(reserved)
        return []

    monkeypatch.setattr(Scheduler, "grow", planted)
    monkeypatch.setattr(reservations, "AHEAD", 16)
    with pytest.raises(AssertionError):
        run(tokens=CONTEXT + 60)


def test_a_model_without_a_context_says_no_end() -> None:
    row = Sequence([1], OPEN)
    assert row.remaining > 10**6
    assert SamplingParams(max_tokens=-1) == OPEN
