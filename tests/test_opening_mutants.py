"""Bugs planted in first steps that read prompts: each shows in what rows say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.batch_state import BatchState
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import Draft, DraftContext
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.opening import OpeningPass
from mlx_spec.decoding.prompt_share import share_prompts
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.decoding.suspects import Suspects
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy
from tests.models import make_model
from tests.opening_runs import LENGTHS, again, decoder_of, drafting, requests, run

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module", autouse=True)
def texts() -> list[list[int]]:
    """Before bugs are planted, and by passes over prompts: what rows with a share get."""
    decoder, _ = decoder_of(batching=BatchingConfig(batch_size=1))
    found = []
    for row in requests():
        share_prompts([row, Sequence(row.prompt)])  # a shared prompt is read apart
        found += run(decoder, [row])
    return found


BAD = 61


class Poison(ModelDrafter):
    """Guesses what the target cannot bear."""

    def propose(self, context: DraftContext, count: int) -> Draft:
        return Draft(mx.full((len(context.sequences), count), BAD, mx.int32))


def poisoned() -> list[list[int]]:
    model = make_model("llama")
    model.model.embed_tokens.weight[BAD] = mx.nan
    mx.eval(model.parameters())
    drafter = Poison(ModelRunner(make_model("llama"), len(LENGTHS)))
    decoder = SpeculativeDecoder(
        model,
        drafter=drafter,
        policy=CyclingPolicy([3]),
        batching=BatchingConfig(batch_size=len(LENGTHS)),
    )
    return run(decoder, requests())


def test_a_guess_that_spoils_a_prompt_s_own_keys_is_made_good(texts: list[list[int]]) -> None:
    """Layers give NaN to what stands before a bad token in the same pass: to prompts, here."""
    assert all(BAD not in text for text in texts)
    assert poisoned() == texts


def spoilt_prompts_left(patch: Patch) -> None:
    judge = Suspects.judge
    patch.setattr(Suspects, "judge", lambda self, row, count, unread=False: judge(self, row, count))


def logits_of_the_token_before(patch: Patch) -> None:
    behind = OpeningPass.behind

    def planted(self: OpeningPass, logits: mx.array) -> mx.array:
        ends = [[max(0, end - 1) for end in own] for own in self.ends]
        return behind(OpeningPass(self.rows, ends), logits)

    patch.setattr(OpeningPass, "behind", planted)


def drafts_behind_the_longest_text(patch: Patch) -> None:
    patch.setattr(
        BatchState,
        "following",
        lambda self, count: (
            self.lengths.max()[None, None]
            + mx.zeros((len(self), 1), mx.int32)
            + mx.arange(count, dtype=mx.int32)
        ),
    )


def forgotten_where_a_step_is(patch: Patch) -> None:
    """A first step that is described, and then not launched, counts as taken."""
    restore, commit = Stepper.restore, ModelRunner.commit
    failed: list[int] = []

    def raising(self: ModelRunner, kept: mx.array) -> None:
        commit(self, kept)
        if not failed:
            failed.append(1)
            raise RuntimeError("planted")

    def planted(self: Stepper, snapshot: Any) -> None:
        restore(self, {**snapshot, "opening": False})

    patch.setattr(ModelRunner, "commit", raising)
    patch.setattr(Stepper, "restore", planted)


@pytest.mark.parametrize(
    "plant",
    [logits_of_the_token_before, drafts_behind_the_longest_text, forgotten_where_a_step_is],
    ids=lambda plant: plant.__name__,
)
def test_planted_bugs_show(plant: Callable[[Patch], None], texts: list[list[int]]) -> None:
    assert again(drafting()[0], requests()) == texts
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        assert again(drafting()[0], requests()) != texts


def test_spoilt_prompts_that_are_left_show(texts: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoilt_prompts_left(patch)
        assert poisoned() != texts
