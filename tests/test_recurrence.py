"""Models with recurrent states verify several tokens in one pass, and go on from the right state.

What is compared is mlx-lm's own greedy loop; five requests share three slots, with drafts of
another length for every row and step, joins, leaves and a preemption.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.layout import own_caches
from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model.recurrence.binding import bind_recurrence, unbind_recurrence
from mlx_spec.model.recurrence.verdict import recurrence_of
from mlx_spec.model.runner import ModelRunner
from tests.architectures import build
from tests.fakes import RaggedPolicy
from tests.oracle import OracleDrafter
from tests.preemption import PROMPTS, SYSTEM, run_with_a_preemption
from tests.scenario import mlx_lm_greedy

# Whose mixers honour masks, so that what is kept is read at once; and the others.
MASKED = ("falcon_h1", "lfm2", "lfm2_moe", "mamba2")
ONE_BY_ONE = ("mamba",)
TEXTS = [(*SYSTEM * (i % 2), *prompt) for i, prompt in enumerate(PROMPTS)]


@cache
def model_of(family: str) -> Any:
    return build(family)


@cache
def texts_of(family: str) -> dict[tuple[int, ...], list[int]]:
    """What mlx-lm makes of each prompt, prompts included."""
    return {text: [*text, *mlx_lm_greedy(model_of(family), text, 24)] for text in TEXTS}


def wrong_rows(family: str, agreement: float) -> int:
    """Rows that differ from what mlx-lm says."""
    decoder = SpeculativeDecoder(
        model_of(family),
        drafter=OracleDrafter(texts_of(family), agreement),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=3, prefill_step_size=16),
    )
    made = run_with_a_preemption(decoder, reusing=False, alike=agreement > 0)
    return sum(
        [*row.prompt, *row.tokens] != texts_of(family)[tuple(row.prompt)][: row.length]
        for row in made
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts passes, and the calls of models that they took."""
    counted = {"passes": 0, "models": 0}
    forward = ModelRunner.forward

    def pass_counted(runner: ModelRunner, rows: Any) -> mx.array:
        counted["passes"] += 1
        model, cls = runner.model, type(runner.model)

        def counting(*args: Any, **kwargs: Any) -> mx.array:
            counted["models"] += 1
            logits: mx.array = cls.__call__(*args, **kwargs)
            return logits

        model.__class__ = type(cls.__name__, (cls,), {"__call__": counting})
        try:
            return forward(runner, rows)
        finally:
            model.__class__ = cls

    monkeypatch.setattr(ModelRunner, "forward", pass_counted)
    return counted


@pytest.mark.parametrize("agreement", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("family", [*MASKED, *ONE_BY_ONE])
def test_one_pass_verifies_and_rows_equal_the_target_alone(
    family: str, agreement: float, calls: dict[str, int]
) -> None:
    assert wrong_rows(family, agreement) == 0
    assert calls["models"] == calls["passes"] > 0


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "mamba"])
def test_mlx_lm_finds_its_models_as_before(family: str) -> None:
    """Bound mixers give the very same over mlx-lm's own caches; unbound they are what they were."""
    model, tokens = build(family), mx.array([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])
    own = [type(module) for _, module in model.named_modules()]

    def logits() -> mx.array:
        cache = own_caches(model)
        return mx.concatenate([model(tokens, cache=cache), model(tokens[:, :1], cache=cache)], 1)

    before = logits()
    bind_recurrence(model, recurrence_of(model).probes)
    assert [type(module) for _, module in model.named_modules()] != own
    assert mx.array_equal(logits(), before)
    unbind_recurrence(model)
    assert [type(module) for _, module in model.named_modules()] == own
