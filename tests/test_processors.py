"""Bias, penalties and min_tokens: mlx-lm's tokens, with drafts and in any company."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.rules import RuleContext, apply_rules
from mlx_spec.decoding.rules.present import rules_of
from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import Job, noisy_draft, run_jobs, target

INFINITY = float("inf")
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "bias": {"logit_bias": {3: 4.0, 9: -INFINITY, 11: -3.5, 40: 2.0}},
    "repetition": {"repetition_penalty": 1.7},
    "repetition in a short window": {"repetition_penalty": 2.5, "repetition_context_size": 3},
    "presence": {"presence_penalty": 1.5, "presence_context_size": 7},
    "frequency": {"frequency_penalty": 0.8, "frequency_context_size": 11},
    "frequency over all": {"frequency_penalty": 0.4, "frequency_context_size": 0},
    "a reward": {"presence_penalty": -2.0, "repetition_penalty": 0.5},
    "windows longer than texts": {"repetition_penalty": 1.3, "repetition_context_size": 1000},
    "all": {
        "logit_bias": {5: 1.0, 6: 1.0},
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "presence_context_size": 5,
        "frequency_penalty": 0.3,
        "frequency_context_size": 9,
    },
    "neutral": {"repetition_penalty": 1.0, "logit_bias": {}},
}
"""For mlx-lm's processors too, under the same names."""


def mlx_lm_says(prompt: tuple[int, ...], options: dict[str, Any], count: int) -> list[int]:
    """Greedy, by mlx-lm's own loop and processors."""
    steps = generate_step(
        mx.array(prompt),
        target("llama"),
        max_tokens=count,
        logits_processors=make_logits_processors(**options),
    )
    return [int(token) for token, _ in steps][:count]


@cache
def jobs() -> tuple[Job, ...]:
    """One or two of each kind, of texts that repeat themselves; what mlx-lm says of them."""
    made = []
    for index, options in enumerate([*OPTIONS.values(), *OPTIONS.values()]):
        rng = random.Random(index)
        prompt = tuple(rng.choice((5, 9, 11, 40)) for _ in range(rng.randint(1, 12)))
        count = rng.randint(8, 24)
        sampling = SamplingParams(max_tokens=count, **options)
        arrival = rng.randint(0, 12)
        made.append(Job(prompt, sampling, tuple(mlx_lm_says(prompt, options, count)), arrival))
    return tuple(made)


def run(chosen: tuple[Job, ...], *, rows: int = 4, draft: Any = None) -> list[Sequence]:
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=draft,
        batching=BatchingConfig(batch_size=rows),
        policy=RaggedPolicy(5) if draft is not None else CyclingPolicy([0]),
    )
    return run_jobs(decoder, chosen)


@pytest.mark.parametrize("drafting", [False, True])
def test_greedy_rows_say_what_mlx_lm_says(drafting: bool) -> None:
    """All kinds in one batch, with joins, leaves and ragged drafts."""
    rows = run(jobs(), draft=noisy_draft("llama") if drafting else None)
    assert [row.tokens for row in rows] == [list(job.expected) for job in jobs()]
    if drafting:
        kinds = len(OPTIONS)
        for one, other in zip(rows[:kinds], rows[kinds:], strict=True):
            assert one.drafted + other.drafted > one.accepted + other.accepted > 0


def test_each_kind_changes_something() -> None:
    """Guards the guard."""
    changed = {
        name
        for job, name in zip(jobs(), [*OPTIONS, *OPTIONS], strict=True)
        if mlx_lm_says(job.prompt, {}, job.sampling.max_tokens) != list(job.expected)
    }
    assert changed == set(OPTIONS) - {"none", "neutral"}


def test_a_draft_of_fewer_tokens_is_ruled_as_far_as_it_goes() -> None:
    """Stops a write to the place of another token, or outside of a row, for ids that it lacks."""
    options = [one for one in OPTIONS.values() if one]
    sequences = [Sequence([1], SamplingParams(**one)) for one in options]
    rules, rows = rules_of(sequences), len(options)
    shapes = ((rows, 24), (rows, 3))
    known, draft = (
        mx.random.randint(0, VOCABULARY, shape, key=mx.random.key(i))
        for i, shape in enumerate(shapes)
    )
    lengths = mx.arange(rows) + 4
    positions = lengths[:, None] + mx.arange(4)
    context = RuleContext(sequences, known, lengths, positions, draft)
    logits = mx.random.normal((rows, 4, VOCABULARY), key=mx.random.key(9))
    before = np.array(logits)
    whole = np.array(apply_rules(rules, logits, context))
    fewer = np.array(apply_rules(rules, logits[..., :20], context))
    assert np.array_equal(whole[..., :20], fewer)
    assert np.array_equal(np.array(logits), before)  # the caller's stays what it is
    assert (whole[..., :20] != before[..., :20]).any(axis=(1, 2)).sum() >= rows - 2


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    decoder = SpeculativeDecoder(target("llama"))
    row = Sequence([1], SamplingParams(logit_bias={VOCABULARY: 1.0}))
    with pytest.raises(InvalidRequest, match="logit_bias of request 1 names the token id 64"):
        decoder.check(row)
