"""Log-probabilities of prompts, read in pieces beside rows that decode, and begun anew."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec import SamplingParams, batch_generate
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding import prompt_logprobs
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.prompt_logprobs import PromptScorer
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import noisy_draft, target

Patch = pytest.MonkeyPatch
SHARED = [(5 * n + 1) % VOCABULARY for n in range(37)]
PROMPTS = [[*SHARED[: 37 - 9 * (i % 3)], *range(i, 9 + 4 * i)] for i in range(5)]
PIECES = BatchingConfig(
    batch_size=3, prefill_interleave=8, prefill_step_size=16, prefix_cache_bytes=2**22
)


def options(index: int) -> SamplingParams:
    return SamplingParams(max_tokens=8, prompt_logprobs=index != 1, top_logprobs=3 * (index % 2))


def run(family: str = "llama") -> list[Sequence]:
    """Five prompts with one beginning; some are fed beside rows that decode, one twice."""
    decoder = SpeculativeDecoder(
        target(family), draft_model=noisy_draft(family), batching=PIECES, policy=RaggedPolicy(3)
    )
    made = [Sequence(list(p), options(i), index=i) for i, p in enumerate(PROMPTS)]
    todo, step, away = list(made), 0, None
    while todo or away or decoder.busy:
        feeder = decoder._members.feeder
        halfway = [s for s in feeder.sequences if s.index > 1 and 0 < feeder.seen(s) < s.length - 1]
        if halfway and not sum(row.preemptions for row in made):
            away = halfway[0]
            decoder.suspend(away, save=True)
        elif away is not None and decoder.free_rows:
            decoder.add([away])
            away = None
        elif todo and decoder.free_rows and step % 2 == 0:
            decoder.add([todo.pop(0)])
        decoder.step()
        step += 1
    assert sum(row.preemptions for row in made) == 1
    assert sum(row.accepted for row in made) > 0
    assert sum(row.reused for row in made[:2]) > 0
    return made


def wrong(rows: list[Sequence], family: str = "llama") -> list[int]:
    """Rows whose prompt's log-probabilities are not those of one pass over it."""
    found = []
    for index, row in enumerate(rows):
        logits = target(family)(mx.array([row.prompt]))[0]
        every = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        asked = row.sampling.prompt_logprobs
        good = len(row.prompt_logprobs) == (len(row.prompt) - 1 if asked else 0)
        for place, one in enumerate(row.prompt_logprobs if good else ()):
            own = every[place]
            good &= one.token == row.prompt[place + 1]
            good &= abs(one.logprob - own[one.token]) < 1e-4
            ranked = sorted(range(len(own)), key=lambda t, own=own: -own[t])
            good &= [t.token for t in one.top] == ranked[: row.sampling.top_logprobs]
        if not good:
            found.append(index)
    return found


@pytest.mark.parametrize("family", ["llama", "mamba2", "gemma3_text", "lfm2"])
def test_they_are_those_of_one_pass(family: str) -> None:
    rows = run(family)
    assert wrong(rows, family) == []
    assert all(row.reused == 0 for row in rows if row.sampling.prompt_logprobs)
    assert [len(row.logprobs) for row in rows] == [0, 8, 0, 8, 0]


def reused_beginnings(patch: Patch) -> None:
    """What the prefix cache has is taken over, and lacks."""
    right = PromptScorer.wants

    def planted(self: PromptScorer, sequence: Sequence) -> bool:
        return right(self, sequence) and sequence.reused > 0

    patch.setattr(PromptScorer, "wants", planted)


def one_place_late(patch: Patch) -> None:
    """Tokens are scored by their own logits."""
    right = prompt_logprobs.score

    def planted(logits: mx.array, tokens: mx.array, most: int) -> Any:
        return right(mx.roll(logits, -1, axis=0), tokens, most)

    patch.setattr(prompt_logprobs, "score", planted)


def goes_on_where_it_stood(patch: Patch) -> None:
    """A row that begins anew keeps what was scored."""
    patch.setattr(PromptScorer, "begin", lambda self, sequence: None)
    patch.setattr(
        prompt_logprobs._ScoredPiece,
        "take",
        lambda self: self.sequence.prompt_logprobs.extend(
            prompt_logprobs.read_scores(
                self.sequence, self.tokens, [np.asarray(array) for array in self.arrays]
            )
        ),
    )


@pytest.mark.parametrize("plant", [reused_beginnings, one_place_late, goes_on_where_it_stood])
def test_a_planted_bug_is_noticed(plant: Any, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert wrong(run())


def test_results_have_them(monkeypatch: Patch) -> None:
    """One more than there are tokens before; nobody pays who does not ask."""
    made: list[int] = []
    right = prompt_logprobs.score
    monkeypatch.setattr(prompt_logprobs, "score", lambda *some: (made.append(1), right(*some))[1])
    prompts = [PROMPTS[0], [7], PROMPTS[2]]
    asked = SamplingParams(max_tokens=2, prompt_logprobs=True)
    result = batch_generate(target("llama"), None, prompts, sampling=asked)
    for prompt, one in zip(prompts, result.results, strict=True):
        assert one.prompt_logprobs is not None
        assert one.prompt_logprobs[0] is None
        assert [p and p.token for p in one.prompt_logprobs[1:]] == prompt[1:]
        assert one.logprobs is None
    assert made
    made.clear()
    plain = batch_generate(target("llama"), None, prompts, max_tokens=2)
    assert all(one.prompt_logprobs is None for one in plain.results)
    assert not made
    assert [one.token_ids for one in plain.results] == [one.token_ids for one in result.results]
