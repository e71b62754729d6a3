"""Rejection sampling under a chain: some rows' guesses are looked up, others' drawn by a model.

Chi-square on the joint distribution of two tokens over a thousand rows of a real target and a real
draft model, which join and leave all the time. Looked-up guesses are sure of themselves: tested as
if the model had drawn them, they would shift what is said.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters import chain as chain_module
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.chain import ChainDrafter
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import serve
from tests.test_chain import counts
from tests.test_rejection import REJECTION

VOCABULARY, REQUESTS, ROWS, HEAT = 3, 1200, 300, 1.5
PROMPT = [1, 2]


class SureOfItself(BaseDrafter):
    """Guesses for some rows, by what they are and how far they are: never by lot."""

    name = "ngram"
    needs_host = True

    def propose(self, context: DraftContext, count: int) -> Draft:
        rows = context.sequences
        lengths = [min(count, 2 * ((row.index + row.length) % 3 == 1)) for row in rows]
        guesses = [[row.index % VOCABULARY, 1][: max(lengths)] for row in rows]
        return Draft(mx.array(guesses, mx.int32), lengths=lengths)


def ran() -> list[Sequence]:
    model, other = (make_model("llama", vocab_size=VOCABULARY, seed=seed) for seed in (0, 1))
    drafting = ModelDrafter(ModelRunner(other, ROWS))
    drafting.name = "model"
    decoder = SpeculativeDecoder(
        model,
        drafter=ChainDrafter([SureOfItself()], [drafting]),
        speculation=REJECTION,
        batching=BatchingConfig(batch_size=ROWS),
        policy=RaggedPolicy(3),
    )
    made = [
        Sequence(PROMPT, SamplingParams(seed=seed, temperature=HEAT, max_tokens=2), index=seed)
        for seed in range(REQUESTS)
    ]
    serve(decoder, made)
    return made


def excess(made: list[Sequence]) -> float:
    """Standard deviations by which chi-square is beyond its mean."""
    model = make_model("llama", vocab_size=VOCABULARY)

    def chances(*said: int) -> np.ndarray:
        return np.array(mx.softmax(model(mx.array([[*PROMPT, *said]]))[0, -1] / HEAT))

    first = chances()
    joint = np.concatenate([first[token] * chances(token) for token in range(VOCABULARY)])
    said = [VOCABULARY * row.tokens[0] + row.tokens[1] for row in made]
    seen, hoped = np.bincount(said, minlength=joint.size), REQUESTS * joint
    free = joint.size - 1
    return float((((seen - hoped) ** 2 / hoped).sum() - free) / (2 * free) ** 0.5)


def test_two_tokens_are_distributed_as_the_target_s() -> None:
    made = ran()
    assert excess(made) < 3.5
    found = counts(made)
    assert set(found) == {"ngram", "model"}
    for drafted, accepted in found.values():
        assert 100 < accepted < drafted - 100


def test_guesses_tested_as_if_a_model_had_drawn_them_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = chain_module._spread
    monkeypatch.setattr(
        chain_module,
        "_spread",
        lambda tokens, q, taken, vocabulary: right(tokens, q, [False] * len(taken), vocabulary),
    )
    assert excess(ran()) > 3.5
