"""Log-probabilities of tokens: of the logits that chose them, whatever was drafted beside them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from metal_kernels.log_sum import log_sum
from mlx_spec import InvalidRequest, SamplingParams, TokenLogprob, batch_generate
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding import logprobs
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.logprobs import LogprobsWatcher
from mlx_spec.decoding.outputs import StepGains
from mlx_spec.decoding.rules import LogitsRule
from mlx_spec.pipeline.stages.generate import GenerateText
from mlx_spec.sequence import Sequence
from tests.api_support import PROMPTS, SIX, draft_model, model, tokenizer
from tests.fakes import RaggedPolicy
from tests.preemption import preempt
from tests.scenario import make_jobs, noisy_draft, target
from tests.toys.forbid_token import ForbidToken

Patch = pytest.MonkeyPatch


def tops(index: int) -> dict[str, Any]:
    """What a request asks for; every third asks for nothing."""
    return [{"logprobs": True}, {}, {"top_logprobs": 4}][index % 3]


@cache
def requests() -> tuple[tuple[tuple[int, ...], SamplingParams], ...]:
    greedy, sampled = (make_jobs("llama", kind, 6) for kind in (False, True))
    jobs = [sampled[i] if i % 2 else greedy[i] for i in range(6)]
    return tuple(
        (job.prompt[:9], replace(job.sampling, max_tokens=12, stop_token_ids=(), **tops(i)))
        for i, job in enumerate(jobs)
    )


def ran(*, draft: bool = True, rows: int = 3, rules: tuple[LogitsRule, ...] = ()) -> list[Sequence]:
    """Mixed rows with ragged drafts, joins and leaves, one of which is preempted and comes back."""
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=noisy_draft("llama") if draft else None,
        batching=BatchingConfig(batch_size=rows),
        policy=RaggedPolicy(4) if draft else None,
        rules=rules,
    )
    made = [
        Sequence(list(prompt), option, stop_ids=frozenset(option.stop_ids), index=index)
        for index, (prompt, option) in enumerate(requests())
    ]
    if draft:
        preempt(decoder, made)
        assert sum(row.accepted for row in made) > 5
        assert sum(row.drafted - row.accepted for row in made) > 5
        assert sum(row.preemptions for row in made) == 1
    else:
        for row in made:
            decoder.add([row])
            while decoder.busy:
                decoder.step()
    return made


def wrong(rows: list[Sequence], forbidden: int | None = None) -> list[int]:
    """Rows whose log-probabilities are not those of one pass over the whole text."""
    found = []
    for index, row in enumerate(rows):
        asked = tops(index)
        logits = target("llama")(mx.array([row.prompt + row.tokens]))[0, len(row.prompt) - 1 : -1]
        if forbidden is not None:
            logits[:, forbidden] = -mx.inf
        every = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        good = len(row.logprobs) == (len(row.tokens) if asked else 0)
        for place, one in enumerate(row.logprobs if good else ()):
            token, own = row.tokens[place], every[place]
            ranked = sorted(range(len(own)), key=lambda t, own=own: -own[t])
            good &= one.token == token and abs(one.logprob - own[token]) < 1e-4
            good &= [t.token for t in one.top] == ranked[: asked.get("top_logprobs", 0)]
            good &= all(abs(t.logprob - own[t.token]) < 1e-4 for t in one.top)
        if not good:
            found.append(index)
    return found


@cache
def ran_once() -> list[Sequence]:
    return ran()


def test_they_are_those_of_the_target_at_each_token() -> None:
    """The same with and without drafts and company, bit by bit where rows are computed alike."""
    together, alone = ran_once(), ran(draft=False)
    assert wrong(together) == wrong(alone) == []
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert [[t.token for t in a.top] for a in one.logprobs] == [
            [t.token for t in b.top] for b in other.logprobs
        ]
        pairs = zip(one.logprobs, other.logprobs, strict=True)
        assert max((abs(a.logprob - b.logprob) for a, b in pairs), default=0) < 1e-4


def test_they_are_those_of_mlx_lm() -> None:
    compared = 0
    for (prompt, option), row in zip(requests(), ran_once(), strict=True):
        if option.temperature == 0 and option.wants_logprobs:
            steps = generate_step(mx.array(prompt), target("llama"), max_tokens=len(row.tokens))
            for (token, theirs), ours in zip(steps, row.logprobs, strict=False):
                assert int(token) == ours.token
                assert float(theirs[ours.token]) == pytest.approx(ours.logprob, abs=1e-4)
                compared += 1
    assert compared >= 20


def test_rules_come_before_them() -> None:
    token = ran_once()[0].tokens[0]
    rows = ran(rules=(ForbidToken(token),))
    assert wrong(rows, token) == []
    assert wrong(rows) != []


def off_by_one_position(patch: Patch) -> None:
    """Tokens are looked up in the logits of the position before."""
    right = logprobs.score

    def planted(logits: mx.array, tokens: mx.array, most: int) -> list[mx.array]:
        return right(mx.roll(logits, 1, axis=1), tokens, most)

    patch.setattr(logprobs, "score", planted)


def first_rows_instead_of_asking_ones(patch: Patch) -> None:
    """The arrays hold asking rows only, and are read as if they held all."""

    def take(self: LogprobsWatcher, gains: StepGains, values: list[Any]) -> None:
        for place, output in enumerate(gains.outputs):
            sequence = gains.rows[place]
            if output is not None and sequence.sampling.wants_logprobs:
                row = [value[place % len(value)] for value in values]
                sequence.logprobs += logprobs.read_scores(sequence, output.tokens, row)

    patch.setattr(LogprobsWatcher, "take", take)


def all_that_was_verified(patch: Patch) -> None:
    """Those of samples past a row's end count."""
    right = logprobs.read_scores

    def planted(sequence: Sequence, tokens: Any, values: Any) -> list[TokenLogprob]:
        return right(sequence, [*tokens, *[0] * len(values[0])], values)

    patch.setattr(logprobs, "read_scores", planted)


@pytest.mark.parametrize(
    "plant", [off_by_one_position, first_rows_instead_of_asking_ones, all_that_was_verified]
)
def test_a_planted_bug_is_noticed(plant: Any, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert wrong(ran())


@pytest.mark.parametrize("vocabulary", [5, 37, 640, 641, 5000, 49_152])
@pytest.mark.parametrize("most", [1, 5, 20])
def test_the_likeliest_are_those_of_a_sorted_row(vocabulary: int, most: int) -> None:
    """In whatever column they stand, all in one or in the last tokens; what is forbidden last."""
    most = min(most, vocabulary)
    rng = np.random.default_rng(vocabulary + most)
    logits = rng.normal(size=(2, 3, vocabulary)).astype(np.float32)
    step = max(1, vocabulary // 32)
    logits[0, 0, ::step][:most] += 50  # neighbours in a column
    logits[0, 1, -most:] += 50
    logits[1, 2, most:] = -np.inf
    found = np.array(logprobs.likeliest(mx.array(logits), most))
    assert found.shape == (2, 3, most)
    assert found.max() < vocabulary
    best = np.sort(np.take_along_axis(logits, found, -1), axis=-1)
    assert np.array_equal(best, np.sort(logits, axis=-1)[..., -most:])
    assert all(len(set(row)) == most for row in found.reshape(-1, most).tolist())


@pytest.mark.parametrize("vocabulary", [1, 5, 32, 640, 49_157])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 60.0])
def test_the_sum_is_right_to_a_float(vocabulary: int, scale: float) -> None:
    """Also where most is forbidden, and where one token has nearly everything."""
    rng = np.random.default_rng(vocabulary)
    logits = (rng.normal(size=(3, 2, vocabulary)) * scale - 30).astype(np.float32)
    logits[0, 0, 1:] = -np.inf
    logits[1, 1, 0] += 20
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    right = top + np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))
    ours = np.array(log_sum(mx.array(logits)))
    assert ours.shape == (3, 2, 1)
    assert np.abs(ours - right).max() <= 1e-6 + 2e-7 * np.abs(right).max()


def test_results_and_chunks_have_them() -> None:
    """A stop text cuts tokens in the middle of a draft, and their log-probabilities with them."""
    asked = SamplingParams(max_tokens=24, top_logprobs=2)
    free = batch_generate(model(), tokenizer(), PROMPTS, sampling=asked, draft_model=draft_model())
    stops = [result.text[6:9] or "x" for result in free.results]
    options = [
        replace(asked, stop=stop, **({} if i % 2 else {"top_logprobs": 0}))
        for i, stop in enumerate(stops)
    ]
    cut = batch_generate(
        model(),
        tokenizer(),
        PROMPTS,
        sampling=options,
        draft_model=draft_model(),
        speculation=SIX,
        batching=BatchingConfig(batch_size=3),
    )
    for index, (whole, result) in enumerate(zip(free.results, cut.results, strict=True)):
        assert whole.logprobs is not None
        assert len(whole.logprobs) == len(whole.token_ids)
        if index % 2:
            assert result.logprobs is not None
            assert [one.token for one in result.logprobs] == result.token_ids
            assert [len(one.top) for one in result.logprobs] == [2] * len(result.token_ids)
            assert all(tokenizer().decode([one.token]) == one.text for one in result.logprobs)
        else:
            assert result.logprobs is None
    assert sum(result.accepted for result in cut.results) > 0
    assert any(len(a.token_ids) < 24 for a in cut.results)


class NoNumbers(LogitsRule):
    """The logits of the third request are no numbers, from its fifth token on."""

    def apply(self, logits: mx.array, context: Any) -> mx.array:
        late = [s.index == 2 and len(s.tokens) > 3 for s in context.sequences]
        return mx.where(mx.array(late)[:, None, None], mx.nan, logits)


def test_a_row_that_fails_keeps_those_before() -> None:
    rows = ran(rules=(NoNumbers(),))
    assert rows[2].error is not None
    assert 0 < len(rows[2].tokens) < 12
    assert wrong(rows) == []


def test_json_has_them_with_texts() -> None:
    top = TokenLogprob(7, -0.5, " a"), TokenLogprob(9, -1.5, " b")
    one = batch_generate(model(), tokenizer(), ["x"], max_tokens=1).results[0]
    scored = replace(one, logprobs=[TokenLogprob(9, -1.5, " b", top)], prompt_logprobs=[None])
    assert one.scores == {}
    assert scored.scores == {
        "logprobs": [
            {
                "token": 9,
                "text": " b",
                "logprob": -1.5,
                "top_logprobs": [
                    {"token": 7, "text": " a", "logprob": -0.5},
                    {"token": 9, "text": " b", "logprob": -1.5},
                ],
            }
        ],
        "prompt_logprobs": [None],
    }
    done = GenerateText().complete({}, scored).fields
    assert done["output_logprobs"] == scored.scores["logprobs"]
    assert done["output_prompt_logprobs"] == [None]
    assert set(GenerateText().complete({}, one).fields) == {"output"}


def test_bounds_are_said() -> None:
    with pytest.raises(InvalidRequest, match=r"top_logprobs=21, expected 0\.\.20"):
        SamplingParams(top_logprobs=21)
