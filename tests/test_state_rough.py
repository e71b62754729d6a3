"""States in rough traffic: steps that are dropped or taken in turn, logits that are no numbers."""

from __future__ import annotations

from itertools import count
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.decoding.drafters.base import Draft, DraftContext
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.model.runner import ModelRunner, Rows
from tests.architectures import build
from tests.fakes import KnowingDrafter
from tests.models import VOCABULARY
from tests.test_state import make_decoder, model_of, run, texts, wrong

FAMILY = "mamba2"


class InTurn(KnowingDrafter):
    needs_host = True


class Hostile(KnowingDrafter):
    """Proposes a token that the model cannot bear, at every place or at every third."""

    def __init__(self, bad: int, every: int) -> None:
        super().__init__(texts(FAMILY), 0.9, VOCABULARY)
        self._bad, self._every = bad, every

    def propose(self, context: DraftContext, count: int) -> Draft:
        draft = super().propose(context, count).tokens
        places = (context.lengths[:, None] + mx.arange(count)) % self._every
        return Draft(mx.where(places == 0, self._bad, draft))


def test_steps_taken_in_turn() -> None:
    decoder = make_decoder(FAMILY, InTurn(texts(FAMILY), 0.6, VOCABULARY))
    made = run(decoder, FAMILY)
    assert wrong(FAMILY, made) == []
    assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)


@pytest.mark.parametrize("every", [2, 3])
def test_what_is_built_and_dropped_has_changed_nothing(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, steps = Stepper.holds, count(1)
    monkeypatch.setattr(
        Stepper, "holds", lambda self, flight: bool(next(steps) % every) and right(self, flight)
    )
    made = run(make_decoder(FAMILY, 0.6), FAMILY)
    assert wrong(FAMILY, made) == []
    assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)
    assert next(steps) > 10


def broken() -> tuple[Any, int]:
    """The model with one token that it cannot bear, and that nobody says."""
    said = {token for text in texts(FAMILY) for token in text}
    bad = next(token for token in range(VOCABULARY) if token not in said)
    model = build(FAMILY)
    model.backbone.embeddings.weight[bad] = mx.nan
    return model, bad


@pytest.mark.parametrize("every", [1, 3])
def test_a_row_that_is_tried_again_goes_on_from_its_tokens(every: int) -> None:
    model, bad = broken()
    made = run(make_decoder(FAMILY, Hostile(bad, every), model=model), FAMILY)
    assert wrong(FAMILY, made) == []
    assert [row.error for row in made] == [None] * 5


def test_what_was_no_number_must_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRunner, "feed", lambda self, rows, step_size, wait: None)
    model, bad = broken()
    made = run(make_decoder(FAMILY, Hostile(bad, 3), model=model), FAMILY)
    assert wrong(FAMILY, made)


def test_a_state_takes_the_same_for_any_text() -> None:
    runner = ModelRunner(model_of(FAMILY), 4)
    cost = runner.cost
    assert cost.nbytes(1) == cost.nbytes(1000) == cost.fixed > 0
    pool = runner.pool
    pool.acquire(4)
    pool.reserve(8)
    runner.forward(Rows(mx.array([[1], [2], [3], [4]]), mx.zeros(4, mx.int32), 1, uniform=True))
    pool.reserve(8000)
    assert pool.nbytes == 4 * cost.fixed
