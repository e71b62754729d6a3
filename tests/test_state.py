"""Models that fold tokens into a state: five requests in three slots, equal mlx-lm's own decoding.

Drafts are of a set acceptance and another length for each row; rows join, leave, and one is
preempted and comes back, while a step is in flight.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.fakes import KnowingDrafter, RaggedPolicy
from tests.models import VOCABULARY
from tests.scenario import mlx_lm_greedy

# Mamba 1 and 2, RWKV, RG-LRU beside a sliding window, Mamba 1 beside attention, a short convolution
# and gated delta net beside attention.
FAMILIES = ("mamba", "mamba2", "lfm2")
LENGTHS = (4, 9, 1, 30, 1)  # of one token too: it begins beside others that are in the middle


@cache
def model_of(family: str) -> Any:
    return build(family)


@cache
def texts(family: str) -> list[list[int]]:
    """What mlx-lm says, prompts in front."""
    prompts = [[(7 * i + 3 * n + n * n) % VOCABULARY for n in range(LENGTHS[i])] for i in range(5)]
    return [
        prompt + mlx_lm_greedy(model_of(family), tuple(prompt), 24 + 2 * i)
        for i, prompt in enumerate(prompts)
    ]


def make_decoder(family: str, acceptance: float, **options: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        model_of(family),
        drafter=KnowingDrafter(texts(family), acceptance, VOCABULARY),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16, prefill_interleave=8),
        **options,
    )


def run(decoder: SpeculativeDecoder, family: str, *, save: bool = True) -> list[Sequence]:
    """The requests as they ended."""
    todo = [
        Sequence(text[:length], SamplingParams(max_tokens=len(text) - length), index=i)
        for i, (text, length) in enumerate(zip(texts(family), LENGTHS, strict=True))
    ]
    made, away, step = list(todo), None, 0
    while todo or away or decoder.busy:
        if step == 3:
            away = decoder.running[0]
            decoder.suspend(away, save=save)
        elif away is not None and step > 6 and decoder.free_rows:
            assert (decoder.saved_bytes > 0) == save
            decoder.add([away])
            away = None
        elif todo and decoder.free_rows:
            decoder.add([todo.pop(0)])
        decoder.step()
        step += 1
    return made


def wrong(family: str, made: list[Sequence]) -> list[int]:
    """Requests whose tokens are not mlx-lm's."""
    return [s.index for s in made if s.prompt + s.tokens != texts(family)[s.index]]


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_say_what_they_say_alone(family: str, acceptance: float) -> None:
    made = run(make_decoder(family, acceptance), family)
    assert wrong(family, made) == []
    accepted = sum(row.accepted for row in made)
    assert (accepted > 0) == (acceptance > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_given_up_is_computed_again(family: str) -> None:
    assert wrong(family, run(make_decoder(family, 0.6), family, save=False)) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_lone_rows_after_every_step(family: str) -> None:
    assert wrong(family, run(make_decoder(family, 0.6, debug=True), family)) == []
