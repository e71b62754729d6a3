"""Rejection sampling end to end, whatever drafts: lookups, heads, the target's own layers.

Texts of many rows, which join and leave, by a real target. At each position the tokens are ranked
by what the target says there of the row's own text; how often two neighbours have which two ranks
is held against what the target expects, by chi-square.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding import rejection
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import Draft, DraftContext
from mlx_spec.model.heads.head import DraftHead, HeadConfig
from mlx_spec.sequence import Sequence
from tests.drafter_runs import guessed
from tests.fakes import RaggedPolicy
from tests.models import make_model
from tests.preemption import serve

Patch = pytest.MonkeyPatch
VOCABULARY, REQUESTS, ROWS, TOKENS, HEAT = 3, 400, 150, 12, 1.5
PROMPT = [1, 2, 0, 1, 2, 0, 1]
KINDS = ("head", "head of some tokens", "self", "ngram", "lookahead", "ngram+head")


@cache
def target() -> Any:
    return make_model("llama", vocab_size=VOCABULARY)


def head(tokens: int) -> DraftHead:
    mx.random.seed(5)
    made = DraftHead(HeadConfig(32, 48, 4, 2, 8, VOCABULARY, draft_vocab_size=tokens))
    if tokens:
        made.tokens = mx.array([0, 2], mx.int32)
    return made


def ran(kind: str) -> list[Sequence]:
    draft, _, some = kind.partition(" of ")
    decoder = SpeculativeDecoder(
        target(),
        draft_model=head(2 if some else 0) if "head" in draft else None,
        speculation=SpeculationConfig(
            draft=draft, acceptance="rejection", draft_layers=(0,) if draft == "self" else None
        ),
        batching=BatchingConfig(batch_size=ROWS),
        policy=RaggedPolicy(3),
    )
    made = [
        Sequence(PROMPT, SamplingParams(seed=seed, temperature=HEAT, max_tokens=TOKENS), index=seed)
        for seed in range(REQUESTS)
    ]
    serve(decoder, made)
    return made


def excess(made: list[Sequence]) -> float:
    """Standard deviations by which chi-square is beyond its mean."""
    texts = mx.array([[*PROMPT, *row.tokens] for row in made])
    logits = target()(texts)[:, len(PROMPT) - 1 : -1] / HEAT
    chances = np.array(mx.softmax(logits, axis=-1)).astype(np.float64)
    order = np.argsort(-chances, axis=-1)
    said = np.array([row.tokens for row in made])
    ranks = (order == said[..., None]).argmax(axis=-1)
    sure = np.take_along_axis(chances, order, axis=-1)
    # What the second of two neighbours is expected to be is known when the first is said.
    first = np.eye(VOCABULARY)[ranks]
    seen = np.einsum("rti,rtj->ij", first[:, :-1], first[:, 1:])
    hoped = np.einsum("rti,rtj->ij", first[:, :-1], sure[:, 1:])
    variances = np.einsum("rti,rtj->ij", first[:, :-1], sure[:, 1:] * (1 - sure[:, 1:]))
    squares = (seen - hoped) ** 2 / variances * (1 - 1 / VOCABULARY)
    free = VOCABULARY * (VOCABULARY - 1)
    return float((squares.sum() - free) / (2 * free) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_distributed_as_the_target_s(kind: str) -> None:
    made = ran(kind)
    assert excess(made) < 3.5
    drafted, accepted = guessed(made)
    for name in kind.partition(" of ")[0].split("+"):
        assert 50 < accepted[name] < drafted[name] - 50, name


def another_tokens_chance(patch: Patch) -> None:
    """What was drawn is tested by the chance of the token before it."""
    right = DraftContext.draft

    def planted(self: DraftContext, guesses: Any) -> Draft:
        made = right(self, guesses)
        if made.probabilities is None:
            return made
        return replace(made, probabilities=mx.roll(made.probabilities, 1, axis=-1))

    patch.setattr(DraftContext, "draft", planted)


def not_so_sure(patch: Patch) -> None:
    """What was looked up is tested as though it had been drawn, from all tokens alike."""
    patch.setattr(
        rejection,
        "one_hot",
        lambda draft, vocabulary: mx.full((*draft.shape, vocabulary), 1 / vocabulary),
    )


@pytest.mark.parametrize(
    ("kind", "plant"),
    [("head", another_tokens_chance), ("self", another_tokens_chance), ("ngram", not_so_sure)],
)
def test_a_planted_bias_is_noticed(kind: str, plant: Any, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert excess(ran(kind)) > 3.5
