"""What models do to logits behind their heads is repeated for draft heads, found by numbers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model.heads import parts as parts_module
from mlx_spec.model.heads.last_word import LastWord
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.hidden import HiddenLayers, noting
from mlx_spec.sequence import Sequence
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.scenario import plain_alone
from tests.toys.sums import TOKENS, SumHead, SumTarget

EXPECTED = {
    "llama": None,
    "gemma2": LastWord(1.0, 30.0),
    "cohere": LastWord(0.0625),
    "granite": LastWord(0.125),
    "nanochat": LastWord(1.0, 15.0),
    "phi3small": LastWord(0.125),
}
MORE: dict[str, dict[str, Any]] = {"granite": {"logits_scaling": 8.0}}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_head_says_of_a_state_what_the_model_says(name: str) -> None:
    """All tokens, and the rows of some."""
    model = build(name, **MORE.get(name, {}))
    parts = TargetParts(model)
    assert parts.last == EXPECTED[name]
    with noting(HiddenLayers()) as notes:
        logits = model(mx.array([[3, 1, 4, 1, 5]]))
        states = notes.take()
    found = mx.where(mx.isinf(logits), logits, parts.output()(states))
    assert mx.allclose(found, logits, rtol=1e-4, atol=1e-5)
    some = mx.array([2, 3, 11])
    assert mx.allclose(parts.output(some)(states), logits[..., some], rtol=1e-4, atol=1e-5)


class CappedTarget(SumTarget):
    """Its head's logits are 0 and 1; what it says is less sure of itself."""

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        return mx.tanh(super().__call__(tokens, cache) / 0.5) * 0.5


def missed() -> int:
    """Wrong guesses of a head that is right, of rows that are drawn."""
    decoder = SpeculativeDecoder(
        CappedTarget(),
        draft_model=SumHead(),
        policy=RaggedPolicy(3),
        batching=BatchingConfig(batch_size=4),
    )
    made = [
        Sequence(
            [(7 * row + 5 * place) % TOKENS for place in range(2 + row)],
            SamplingParams(max_tokens=12, temperature=0.2, seed=row),
        )
        for row in range(4)
    ]
    decoder.add(made)
    while decoder.busy:
        decoder.step()
    for row in made:
        assert row.tokens == plain_alone(CappedTarget(), tuple(row.prompt), row.sampling)
    assert sum(row.drafted for row in made) > 20
    return sum(row.drafted - row.accepted for row in made)


def test_what_is_drawn_is_drawn_alike() -> None:
    assert missed() == 0


def test_without_it_fewer_guesses_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant, as it was: the head's logits as they are."""
    monkeypatch.setattr(parts_module, "last_word", lambda model, vocabulary: None)
    assert missed() > 0
