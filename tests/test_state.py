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
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.model import known_support, support
from mlx_spec.model.recurrence.verdict import Recurrence
from mlx_spec.sequence import Sequence
from mlx_spec.weak_memo import WeakMemo
from tests.architectures import build
from tests.fakes import CorruptingDrafter, KnowingDrafter, RaggedPolicy, every_fifth
from tests.models import VOCABULARY
from tests.scenario import mlx_lm_greedy

FAMILIES = ("mamba", "mamba2", "rwkv7", "recurrent_gemma", "jamba", "lfm2", "qwen3_next")
LENGTHS = (4, 9, 1, 30, 1)  # of one token too: it begins beside others that are in the middle


@cache
def model_of(family: str) -> Any:
    return build(family)


@pytest.fixture
def token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no family's recurrence could be run again, or be told where a row ends."""
    none = Recurrence(replays=False, pads=False, zeros=False)
    monkeypatch.setattr(support, "recurrence_of", lambda model: none)
    monkeypatch.setattr(known_support, "_KNOWN", WeakMemo())


@cache
def texts(family: str) -> list[list[int]]:
    """What mlx-lm says, prompts in front."""
    prompts = [[(7 * i + 3 * n + n * n) % VOCABULARY for n in range(LENGTHS[i])] for i in range(5)]
    return [
        prompt + mlx_lm_greedy(model_of(family), tuple(prompt), 24 + 2 * i)
        for i, prompt in enumerate(prompts)
    ]


def make_decoder(family: str, drafts: float | Drafter, **options: Any) -> SpeculativeDecoder:
    """Drafts are a drafter's, or of a set acceptance."""
    if isinstance(drafts, float):
        drafts = KnowingDrafter(texts(family), drafts, VOCABULARY)
    model = options.pop("model", None) or model_of(family)
    return SpeculativeDecoder(
        model,
        drafter=drafts,
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
            joining = todo[: decoder.free_rows]
            decoder.add(joining)
            del todo[: len(joining)]
        decoder.step()
        step += 1
    return made


def wrong(family: str, made: list[Sequence]) -> list[int]:
    """Requests whose tokens are not mlx-lm's."""
    return [s.index for s in made if s.prompt + s.tokens != texts(family)[s.index]]


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_say_what_they_say_alone(family: str, acceptance: float) -> None:
    decoder = make_decoder(family, acceptance)
    made = run(decoder, family)
    assert not decoder.runner.support.form.tokens_apart
    assert wrong(family, made) == []
    assert (sum(row.accepted for row in made) > 0) == (acceptance > 0)


@pytest.mark.usefixtures("token_by_token")
@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma", "qwen3_next"])
def test_token_by_token_they_do_too(family: str) -> None:
    decoder = make_decoder(family, 0.6)
    assert (decoder.runner.support.form.tokens_apart, decoder.runner.pads) == (True, False)
    assert wrong(family, run(decoder, family)) == []


@pytest.mark.parametrize("family", ["recurrent_gemma", "lfm2"])
def test_what_was_given_up_is_computed_again(family: str) -> None:
    assert wrong(family, run(make_decoder(family, 0.6), family, save=False)) == []


@pytest.mark.parametrize("family", ["mamba2", "jamba"])
def test_states_are_those_of_lone_rows_after_every_step(family: str) -> None:
    assert wrong(family, run(make_decoder(family, 0.6, debug=True), family)) == []


@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma"])
def test_as_a_draft_it_guesses_from_its_own_states(family: str) -> None:
    """What rides in its first pass is padded, and some of these models cannot be told so."""
    drafter = CorruptingDrafter(model_of(family), 3, every_fifth, VOCABULARY)
    made = run(make_decoder(family, drafter), family)
    assert wrong(family, made) == []
    assert sum(row.accepted for row in made) > sum(row.drafted for row in made) / 2
