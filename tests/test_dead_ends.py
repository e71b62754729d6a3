"""Guesses that lead a constrained row where no token can follow: judged as any other guess.

Two ways lead into ``(abab|c[W-Z]{2})d``, and the tokenizer cannot write W to Z: who says ``c``
fails behind it. Guesses are ``a`` or ``c`` by lot.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig, Structure
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.decoding.drafters.choosing import Guessing
from mlx_spec.sequence import Sequence
from mlx_spec.structured.compiler import guide_of
from mlx_spec.structured.masks import _Walk, fill_masks
from tests.fakes import CyclingPolicy
from tests.models import VOCABULARY
from tests.preemption import serve
from tests.scenario import target
from tests.structures import END, small_tokenizer

A, C = 1, 3
ASTRAY = Structure.regex("(abab|c[W-Z]{2})d")
PROMPT = [5, 9, 2]
ROWS, REQUESTS = 50, 600


class ByLot(BaseDrafter):
    """Draws ``a`` or ``c``, and says by what chances."""

    def propose(self, context: DraftContext, count: int) -> Draft:
        even = mx.full((len(context.sequences), 1, VOCABULARY), -mx.inf)
        even[..., mx.array([A, C])] = 0.0
        draft: list[mx.array] = []
        for _ in range(count):
            draft.append(Guessing().choose(context, even, draft))
        return context.draft(draft)


def ran(acceptance: str, drafted: int, requests: int = REQUESTS) -> list[Sequence]:
    decoder = SpeculativeDecoder(
        target("llama"),
        drafter=ByLot(),
        policy=CyclingPolicy([drafted]),
        speculation=SpeculationConfig(acceptance=acceptance),
        batching=BatchingConfig(batch_size=ROWS),
    )
    made = []
    for seed in range(requests):
        sampling = SamplingParams(max_tokens=9, temperature=1.0, seed=seed, structure=ASTRAY)
        row = Sequence(list(PROMPT), sampling, stop_ids=frozenset({END}), index=seed)
        row.guide = guide_of(ASTRAY, small_tokenizer())
        made.append(row)
    serve(decoder, made)
    return made


@cache
def chance_of_c() -> float:
    """By the target, of the tokens that may come first."""
    allowed = [A, C, small_tokenizer().encode("ab")[0]]
    logits = np.array(target("llama")(mx.array([PROMPT]))[0, -1])[allowed]
    return float((np.exp(logits) / np.exp(logits).sum())[1])


def off(made: list[Sequence]) -> float:
    """Standard deviations between how often ``c`` came first and how often it should."""
    chance, count = chance_of_c(), sum(row.tokens[0] == C for row in made)
    return abs(count - len(made) * chance) / (len(made) * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("acceptance", ["shared_noise", "rejection"])
def test_who_goes_astray_fails_there_and_says_why(acceptance: str) -> None:
    """As without drafts; the others come to their end."""
    made = ran(acceptance, 3, 300)
    astray = [row for row in made if row.tokens[0] == C]
    assert 30 < len(astray) < 270  # 36 of 300 are to be expected
    for row in astray:
        assert row.tokens == [C]
        assert row.error is not None
        assert "cannot be followed after 1 tokens: it leads nowhere" in row.error
    assert sum(row.accepted for row in astray) > 15  # as guesses, not only as what the target says
    assert {small_tokenizer().decode(row.tokens) for row in made if row not in astray} == {"ababd"}
    if acceptance == "shared_noise":
        plain = ran(acceptance, 0, 300)
        assert [(row.tokens, row.error) for row in made] == [
            (row.tokens, row.error) for row in plain
        ]


def test_by_rejection_it_is_no_more_and_no_less_likely() -> None:
    assert off(ran("rejection", 1)) < 3.5


def test_dropping_such_a_guess_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: it is not judged, and the row draws anew."""
    right = _Walk.back

    def planted(self: _Walk) -> None:
        right(self)
        if self.end is not None:
            self.end = None
            self.counted = self.tested = self.place - 1

    monkeypatch.setattr(_Walk, "back", planted)
    assert off(ran("rejection", 1)) > 3.5


def test_a_guide_is_left_where_it_stood() -> None:
    guide = guide_of(ASTRAY, small_tokenizer())
    first = fill_masks([guide], [[C, A]])
    assert (first.counted, first.tested) == ([1], [1])
    assert first.ends[0] is not None
    assert first.ends[0].tokens == (C,)
    assert guide.trouble is None
    assert (fill_masks([guide], [[A, C]]).words[0, 0] == first.words[0, 0]).all()
