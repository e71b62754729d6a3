"""Whole calls of generation, ours and mlx-lm's, on the same prompts and the same pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bench_support.pair import Pair  # loads the fast BLAS, before mlx
from bench_support.roofline import FixedSteps

import mlx.core as mx  # isort: skip
from mlx_lm.generate import batch_generate as mlx_lm_batch
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.sample_utils import make_sampler

import mlx_spec
from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig


@dataclass(frozen=True)
class Made:
    """What a call gave.

    Attributes:
        tokens: generated.
        notes: to be shown.
        step: of ours its average step, its draft length as it was at most.
    """

    tokens: int
    notes: dict[str, Any] = field(default_factory=dict)
    step: FixedSteps | None = None


Run = Callable[[], Made]

BOTH = "ngram+model"


@dataclass(frozen=True)
class Work:
    """One setting.

    Attributes:
        batch: rows.
        temp: temperature.
        max_tokens: of each prompt.
        draft_tokens: our largest draft length.
        adaptive: choose draft lengths by measured costs; else always the largest.
        texts: prompts, at least.
        drafters: those that are asked, by name; None for the draft model.
    """

    batch: int
    temp: float
    max_tokens: int
    draft_tokens: int
    adaptive: bool = True
    texts: int = 4
    drafters: str | None = None


def timed(run: Run) -> dict[str, Any]:
    """Tokens a second of the whole call, peak memory in MB, notes, the average step."""
    mx.clear_cache()
    mx.reset_peak_memory()
    started = time.perf_counter()
    made = run()
    seconds = time.perf_counter() - started
    return {
        "tokens_per_second": made.tokens / seconds,
        "peak_mb": mx.get_peak_memory() / 1e6,
        "notes": made.notes,
        "step": made.step,
    }


def prompts(pair: Pair, work: Work) -> list[list[int]]:
    """Twice as many prompts as rows, or more: rows that end are filled again.

    That is how a batch lives. In a closed batch the last row decides, and the fewer prompts, the
    less their texts say about acceptance.
    """
    return pair.prompts(max(work.texts, 2 * work.batch))


def ours(pair: Pair, work: Work, *, speculate: bool) -> Made:
    """batch_generate, plain or speculating with an adaptive draft length."""
    made = mlx_spec.batch_generate(
        pair.model,
        pair.tokenizer,
        prompts(pair, work),
        draft_model=pair.draft if speculate else None,
        sampling=SamplingParams(
            max_tokens=work.max_tokens, temperature=work.temp, seed=1, ignore_eos=True
        ),
        speculation=SpeculationConfig(
            num_draft_tokens=work.draft_tokens,
            adaptive=work.adaptive,
            draft=work.drafters,
        ),
        batching=BatchingConfig(batch_size=work.batch),
    )
    stats = made.stats
    notes = {
        "acceptance": round(stats.acceptance_rate, 3),
        "mean_acceptance_length": round(stats.mean_acceptance_length, 2),
        "draft_lengths": dict(stats.draft_lengths),
    }
    step = FixedSteps.of(work.draft_tokens if speculate else 0, stats)
    return Made(stats.generation_tokens, notes if speculate else {}, step)


def mlx_plain(pair: Pair, work: Work) -> Made:
    """mlx-lm's loop, one prompt after the other."""
    tokens, options = 0, {"max_tokens": work.max_tokens, "sampler": make_sampler(work.temp)}
    for prompt in prompts(pair, work):
        tokens += sum(1 for _ in generate_step(mx.array(prompt), pair.model, **options))
    return Made(tokens)


def mlx_speculative(pair: Pair, work: Work, length: int) -> Made:
    """mlx-lm's speculative loop at a fixed draft length, one prompt after the other."""
    drafted: list[bool] = []
    for prompt in prompts(pair, work):
        steps = speculative_generate_step(
            mx.array(prompt),
            pair.model,
            pair.draft,
            num_draft_tokens=length,
            max_tokens=work.max_tokens,
            sampler=make_sampler(work.temp),
        )
        drafted += [from_draft for _, _, from_draft in steps]
    return Made(len(drafted), {"from_draft": round(sum(drafted) / len(drafted), 3)})


def mlx_batch(pair: Pair, work: Work) -> Made:
    """mlx-lm's batch_generate with as many rows."""
    response = mlx_lm_batch(
        pair.model,
        pair.tokenizer,
        prompts(pair, work),
        max_tokens=work.max_tokens,
        return_token_ids=True,
        sampler=make_sampler(work.temp),
        completion_batch_size=work.batch,
        prefill_batch_size=min(8, work.batch),
    )
    assert response.token_ids is not None
    return Made(sum(len(ids) for ids in response.token_ids))


def methods(pair: Pair, work: Work, lengths: list[int]) -> dict[str, Run]:
    """What is compared in a setting; mlx-lm's own speculation has no batches, so that fixed
    lengths, its own and ours, are of one row."""
    found: dict[str, Run] = {}
    if work.batch == 1:
        found["mlx-lm plain"] = partial(mlx_plain, pair, work)
        for length in lengths:
            run = partial(mlx_speculative, pair, work, length)
            found[f"mlx-lm speculative K={length}"] = run
    found["mlx-lm batch_generate"] = partial(mlx_batch, pair, work)
    found["ours plain"] = partial(ours, pair, work, speculate=False)
    found["ours speculative"] = partial(ours, pair, work, speculate=True)
    both = replace(work, drafters=BOTH)
    found[f"ours {BOTH}"] = partial(ours, pair, both, speculate=True)
    for length in lengths if work.batch == 1 else ():
        fixed = replace(work, draft_tokens=length, adaptive=False)
        found[f"ours fixed K={length}"] = partial(ours, pair, fixed, speculate=True)
    return found
