"""Users' own processors and samplers: asked about guesses, exact, and their rows' own affair."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_logits_processors

from mlx_spec import batch_generate
from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.rules.foreign import ForeignFunctions
from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.scenario import Job, noisy_draft, plain_alone, run_jobs, target


def after_odd(tokens: mx.array, logits: mx.array) -> mx.array:
    """Another bias behind odd tokens; written into what is given, as mlx-lm's are."""
    if int(tokens[-1]) % 2:
        logits[:, 5] += 3.0
    logits[:, tokens[-3:]] -= 1.0
    return logits


def second_best(logprobs: mx.array) -> mx.array:
    return mx.argsort(-logprobs, axis=-1)[:, 1]


REPETITION = make_logits_processors(repetition_penalty=1.7, repetition_context_size=6)
OPTIONS: list[dict[str, Any]] = [
    {"logits_processors": [after_odd]},
    {"logits_processors": REPETITION},
    {"repetition_penalty": 1.7, "repetition_context_size": 6},
    {"sampler": second_best},
    {"logits_processors": [after_odd, *REPETITION], "temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.9},
    {"sampler": second_best, "logits_processors": after_odd, "presence_penalty": 1.0},
]


def make(options: dict[str, Any], index: int, **more: Any) -> Job:
    rng = random.Random(index)
    prompt = tuple(rng.choice((5, 9, 11, 40)) for _ in range(rng.randint(1, 12)))
    sampling = SamplingParams(max_tokens=rng.randint(12, 20), seed=index, **{**options, **more})
    return Job(prompt, sampling, (), arrival=2 * index)


def run(jobs: list[Job]) -> list[Sequence]:
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=noisy_draft("llama"),
        batching=BatchingConfig(batch_size=3),
        policy=RaggedPolicy(4),
    )
    return run_jobs(decoder, tuple(jobs))


JOBS = [make(options, index) for index, options in enumerate(OPTIONS)]


def test_functions_say_the_same_with_drafts_and_in_company() -> None:
    rows = run(JOBS)
    for job, row in zip(JOBS, rows, strict=True):
        assert row.tokens == plain_alone(target("llama"), job.prompt, job.sampling)
        assert row.drafted > 0
    assert sum(row.accepted for row in rows[:5]) > 10
    assert all(row.accepted < row.drafted for row in rows[:2])


def test_mlx_lm_s_own_processors_do_what_the_option_does() -> None:
    prompt = JOBS[1].prompt
    one, other = (plain_alone(target("llama"), prompt, JOBS[i].sampling) for i in (1, 2))
    assert one[:12] == other[:12]


class Failing:
    """Raises behind a text of so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if len(tokens) >= self.length:
            raise KeyError("planted")
        return logits


def wide(tokens: mx.array, logits: mx.array) -> mx.array:
    return logits[0]


def beyond(logprobs: mx.array) -> mx.array:
    return mx.array([640])


@pytest.mark.parametrize(
    ("options", "said", "words"),
    [
        ({"logits_processors": [Failing(14)]}, 13, "Failing raised KeyError('planted')"),
        ({"logits_processors": [wide]}, 0, "wide returned (64,), expected logits of shape (1, 64)"),
        ({"sampler": lambda logprobs: 1 / 0}, 0, "raised ZeroDivisionError"),
        ({"sampler": lambda logprobs: "x"}, 0, "returned no token: 'x'"),
        ({"sampler": beyond}, 0, "beyond returned the token 640; the model's vocabulary has 64"),
    ],
)
def test_what_a_function_raises_ends_its_row(
    options: dict[str, Any], said: int, words: str
) -> None:
    """At the token before, with drafts behind which it raised too; neighbours go on."""
    jobs = [*JOBS[:2], make(options, 7)]
    jobs[2] = Job(jobs[2].prompt, jobs[2].sampling, (), arrival=0)
    rows = run(jobs)
    assert rows[2].finish_reason == "error"
    assert words in (rows[2].error or "")
    assert len(rows[2].tokens) == max(0, said - len(jobs[2].prompt) + 1) if said else True
    for job, row in zip(jobs[:2], rows[:2], strict=True):
        assert row.finish_reason == "length"
        assert row.tokens == plain_alone(target("llama"), job.prompt, job.sampling)


def test_what_is_raised_about_a_wrong_guess_is_nobodys() -> None:
    """Nobody would have got there."""
    plain = make({}, 3)
    expected = [*plain.prompt, *plain_alone(target("llama"), plain.prompt, plain.sampling)]
    raised = []

    def strict(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.tolist() != expected[: len(tokens)]:
            raised.append(len(tokens))
            raise ValueError("never said")
        return logits

    (row,) = run([make({"logits_processors": strict}, 3)])
    assert (row.finish_reason, row.error) == ("length", None)
    assert [*row.prompt, *row.tokens] == expected
    assert raised


def test_functions_are_no_data() -> None:
    one, other = (SamplingParams(logits_processors=[f]) for f in (after_odd, wide))
    assert one == other
    assert len({one, other, SamplingParams(logit_bias={3: 1.0})}) == 2


def test_keywords_take_functions() -> None:
    """One for all prompts."""
    results = batch_generate(
        target("llama"), None, [[5, 9], [11]], max_tokens=5, sampler=second_best
    )
    for prompt, result in zip(([5, 9], [11]), results.results, strict=True):
        sampling = SamplingParams(max_tokens=5, sampler=second_best)
        assert list(result.token_ids) == plain_alone(target("llama"), tuple(prompt), sampling)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": second_best, "temperature": 0.5}, "temperature=0.5 would not count"),
        ({"sampler": second_best, "xtc_probability": 0.5}, "xtc_probability=0.5 would not"),
        ({"sampler": 3}, "3 is no function of logits"),
        ({"logits_processors": [1]}, "1 is no function of logits"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**options)


@pytest.mark.parametrize("mutant", ["the draft not seen", "one guess too many", "another row's"])
def test_a_planted_bug_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    see: Callable[..., Any] = ForeignFunctions.see

    def wrong(self: Any, sequences: Any, draft: list[list[int]]) -> None:
        if mutant == "the draft not seen":
            draft = [[0] * len(row) for row in draft]
        elif mutant == "one guess too many":
            draft = [[*row[1:], *row[:1]] for row in draft]
        else:
            draft = draft[1:] + draft[:1]
        see(self, sequences, draft)

    monkeypatch.setattr(ForeignFunctions, "see", wrong)
    jobs = JOBS[:2] * 2
    said = [row.tokens for row in run(jobs)]
    assert said != [plain_alone(target("llama"), job.prompt, job.sampling) for job in jobs]
