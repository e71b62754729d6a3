"""Rows with different options in one batch: none keeps another from batching or drafting.

Every kind of shaping beside every other, greedy and sampled, with ragged drafts, joins, leaves and
a preemption; each row says what plain decoding of it alone says. Planted bugs are seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from metal_kernels import sample_exclusion
from metal_kernels.noise import Keys
from mlx_spec import batch_generate
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.rules import RuleContext, penalties
from mlx_spec.decoding.rules.bias import LogitBiases
from mlx_spec.decoding.rules.min_tokens import MinTokens
from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import Job, noisy_draft, plain_alone, run_jobs, target

Patch = pytest.MonkeyPatch
OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8, "repetition_context_size": 4},
    {},
    {"temperature": 0.9, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"temperature": 0.8, "frequency_penalty": 0.7, "frequency_context_size": 6},
    {"logit_bias": {3: 9, 8: 9, 12: 9}, "presence_penalty": 4.0, "presence_context_size": 2},
    {"min_tokens": 12, "stop_token_ids": (33, 34), "logit_bias": {33: 15.0}},
    {"temperature": 1.1, "min_p": 0.9, "min_tokens_to_keep": 3, "presence_penalty": 1.0},
    {
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 6,
        "xtc_probability": 0.8,
        "xtc_threshold": 0.1,
        "xtc_special_tokens": (5, 9),
        "repetition_penalty": 1.4,
        "logit_bias": {40: 2.0},
    },
    {"temperature": 0.9},
]
"""Rows of one batch; each but two has something that the others have not."""


@cache
def jobs() -> tuple[Job, ...]:
    """One of each, joining one after another."""
    made = []
    for index, options in enumerate(OPTIONS):
        rng = random.Random(index)
        prompt = tuple(rng.choice((5, 9, 11, 40)) for _ in range(rng.randint(1, 12)))
        sampling = SamplingParams(max_tokens=rng.randint(14, 20), seed=index, **options)
        stops = frozenset(sampling.stop_ids)
        alone = plain_alone(target("llama"), prompt, sampling) if not stops else _alone(index)
        made.append(Job(prompt, sampling, tuple(alone), arrival=2 * index))
    return tuple(made)


def _alone(index: int) -> list[int]:
    """With stop tokens, which ``plain_alone`` does not know."""
    rng = random.Random(index)
    prompt = [rng.choice((5, 9, 11, 40)) for _ in range(rng.randint(1, 12))]
    sampling = SamplingParams(max_tokens=rng.randint(14, 20), seed=index, **OPTIONS[index])
    row = Sequence(prompt, sampling, stop_ids=frozenset(sampling.stop_ids))
    decoder = SpeculativeDecoder(target("llama"))
    decoder.add([row])
    while decoder.busy:
        decoder.step()
    return row.tokens


def run() -> list[Sequence]:
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=noisy_draft("llama"),
        batching=BatchingConfig(batch_size=4),
        policy=RaggedPolicy(4),
    )
    return run_jobs(decoder, jobs())


def test_every_mix_drafts_and_says_what_each_says_alone() -> None:
    rows = run()
    for job, row in zip(jobs(), rows, strict=True):
        assert row.tokens == list(job.expected), job.sampling
        assert row.drafted > 0
    assert sum(row.drafted - row.accepted for row in rows) > 20
    assert sum(row.accepted for row in rows) > 20


@pytest.mark.parametrize("save", [False, True])
def test_a_preempted_row_goes_on_under_its_own_options(save: bool) -> None:
    """It leaves in the middle and comes back to another slot; windows reach back before that."""
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=noisy_draft("llama"),
        batching=BatchingConfig(batch_size=3),
        policy=RaggedPolicy(4),
    )
    chosen = [jobs()[index] for index in (2, 0, 7)]
    rows = [Sequence(list(job.prompt), job.sampling, index=i) for i, job in enumerate(chosen)]
    decoder.add(rows)
    for _ in range(4):
        decoder.step()
    decoder.suspend(rows[0], save=save)
    decoder.suspend(rows[1], save=save)
    decoder.step()
    decoder.add([rows[1], rows[0]])
    while decoder.busy:
        decoder.step()
    assert [row.tokens for row in rows] == [list(job.expected) for job in chosen]
    assert all(row.preemptions for row in rows[:2])


# --- planted bugs -----------------------------------------------------------------------------


def _with_draft(patch: Patch, change: Callable[[mx.array], mx.array]) -> None:
    right = penalties.windows_of

    def windows(context: RuleContext, *more: Any) -> mx.array:
        return right(replace(context, draft=change(context.draft)), *more)

    patch.setattr(penalties, "windows_of", windows)


def draft_past_the_position(patch: Patch) -> None:
    _with_draft(patch, lambda draft: mx.concatenate([draft[:, 1:], draft[:, :1]], axis=1))


def draft_not_seen(patch: Patch) -> None:
    _with_draft(patch, lambda draft: mx.full(draft.shape, -1, mx.int32))


def window_one_short(patch: Patch) -> None:
    right = penalties.windows_of

    def windows(context: RuleContext, sizes: mx.array, longest: int) -> mx.array:
        return right(context, sizes - 1, longest)

    patch.setattr(penalties, "windows_of", windows)


def predecessors_rules_for_a_joiner(patch: Patch) -> None:
    """A newcomer's slot keeps what its predecessor wanted, until rows change again."""
    right = BatchState.rearrange

    def rearrange(self: BatchState, order: Any, newcomers: Any, **more: Any) -> None:
        before, rows = self.rules, len(self.sequences)
        right(self, order, newcomers, **more)
        if newcomers and before and len(self.sequences) >= rows:
            self.rules = before

    patch.setattr(BatchState, "rearrange", rearrange)


def predecessors_options_for_a_joiner(patch: Patch) -> None:
    """Whoever sits in a slot samples like the first that did."""
    right = BatchState.rearrange

    def rearrange(self: BatchState, order: Any, newcomers: Any, **more: Any) -> None:
        right(self, order, newcomers, **more)
        first = self.__dict__.setdefault("_first", {})
        first.setdefault(len(self.sequences), self.sampling)
        self.sampling = first[len(self.sequences)]

    patch.setattr(BatchState, "rearrange", rearrange)


def a_neighbours_bias(patch: Patch) -> None:
    right = LogitBiases.process

    def process(self: LogitBiases, logits: mx.array, context: RuleContext) -> mx.array:
        turned = LogitBiases(self.tokens[::-1], self.biases[::-1])
        return right(turned, logits, context)

    patch.setattr(LogitBiases, "process", process)


def ends_allowed_behind_guesses(patch: Patch) -> None:
    right = MinTokens.process

    def process(self: MinTokens, logits: mx.array, context: RuleContext) -> mx.array:
        later = context.positions + 99 * (context.positions > context.lengths[:, None])
        return right(self, logits, replace(context, positions=later))

    patch.setattr(MinTokens, "process", process)


def one_coin_a_step(patch: Patch) -> None:
    right = sample_exclusion.stream_word

    def word(keys: Keys, stream: int) -> mx.array:
        first = Keys(*(mx.broadcast_to(key[:1], key.shape) for key in keys))
        return right(first, stream)

    patch.setattr(sample_exclusion, "stream_word", word)


BUGS = [
    draft_past_the_position,
    draft_not_seen,
    window_one_short,
    predecessors_rules_for_a_joiner,
    predecessors_options_for_a_joiner,
    a_neighbours_bias,
    ends_allowed_behind_guesses,
    one_coin_a_step,
]


@pytest.mark.parametrize("plant", BUGS)
def test_a_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    expected = [list(job.expected) for job in jobs()]
    plant(monkeypatch)
    assert [row.tokens for row in run()] != expected


# --- edges ------------------------------------------------------------------------------------


def said(**options: Any) -> list[int]:
    return plain_alone(target("llama"), (5, 9, 11), SamplingParams(max_tokens=8, **options))


def test_xtc_without_temperature_is_greedy() -> None:
    assert said(xtc_probability=1.0, xtc_threshold=0.01) == said()


@pytest.mark.parametrize("bias", [float("-inf"), -100.0])
def test_all_but_one_forbidden_says_that_one(bias: float) -> None:
    others = {str(token): bias for token in range(VOCABULARY) if token != 17}
    assert said(logit_bias=others) == [17] * 8
    assert said(logit_bias=others, temperature=1.0, seed=3) == [17] * 8


def test_xtc_excludes_and_its_coin_is_the_seeds() -> None:
    """At a probability of 1 the best token is never said; else it depends on the position."""
    always = {"xtc_probability": 1.0, "xtc_threshold": 0.001, "temperature": 1e-9, "seed": 1}
    assert all(one != other for one, other in zip(said(**always)[:1], said()[:1], strict=True))
    half = [said(**{**always, "xtc_probability": 0.5, "seed": seed})[0] for seed in range(30)]
    assert set(half) == {said()[0], said(**always)[0]}
    assert 5 < half.count(said()[0]) < 25


def test_no_end_before_min_tokens() -> None:
    first = said()[0]
    (free, held) = (
        batch_generate(
            target("llama"),
            None,
            [[5, 9, 11]],
            max_tokens=8,
            stop_token_ids=first,
            min_tokens=least,
        ).results[0]
        for least in (0, 6)
    )
    assert (free.generation_tokens, free.finish_reason) == (1, "stop")
    assert held.generation_tokens >= 6
    assert first not in held.token_ids[:6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9, max_tokens=8"),
        ({"repetition_penalty": -1}, r"repetition_penalty=-1, expected a number in \[0, 100\]"),
        ({"presence_penalty": float("nan")}, "presence_penalty=nan"),
        ({"frequency_context_size": -1}, "frequency_context_size=-1, expected an integer >= 0"),
        ({"xtc_threshold": 0.6}, r"xtc_threshold=0.6, expected a number in \[0, 0.5\]"),
        ({"min_tokens_to_keep": 0}, "min_tokens_to_keep=0, expected an integer >= 1"),
        ({"logit_bias": {"a": 1}}, r"logit_bias=\{'a': 1\}, expected token ids and numbers"),
        ({"logit_bias": {1.5: 1}}, "expected token ids and numbers"),
        ({"logit_bias": [3]}, "expected token ids and numbers"),
        ({"logit_bias": {-3: 1}}, "a token id of logit_bias=-3"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of token 3 is nan"),
        ({"logit_bias": [(3, 1), ("3", 2)]}, "names a token twice"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**options)
