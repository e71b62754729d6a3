"""Scores of labels: a ragged batch equals one label of one prompt at a time."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.pipeline.scoring.scorer import Scorer
from tests.architectures import build
from tests.models import VOCABULARY, make_model

# States that can be told where a row ends, and some that cannot.
STATES = ("lfm2", "mamba")


def slow_score(model: object, prompt: list[int], label: list[int]) -> float:
    """The definition: the whole text through the model, no cache, no padding, one at a time."""
    logits = model(mx.array([prompt + label]))[0].astype(mx.float32)  # type: ignore[operator]
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    places = range(len(prompt) - 1, len(prompt) + len(label) - 1)
    return sum(
        float(log_probs[place, token].item()) for place, token in zip(places, label, strict=True)
    )


FAMILIES = ("llama", "qwen3", "gemma", *STATES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step_size", [2048, 5])
def test_ragged_prompts_and_labels_score_as_alone(family: str, step_size: int) -> None:
    rng = random.Random(3)

    def tokens(most: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, most))]

    model = build(family) if family in STATES else make_model(family)
    runner = ModelRunner(model, 8)
    scorer = Scorer(runner, step_size)
    for rows in (1, 2, 7):
        prompts = [tokens(20) for _ in range(rows)]
        labels = [[tokens(5) for _ in range(rng.randint(1, 4))] for _ in range(rows)]
        scores = scorer.score(prompts, labels)
        for prompt, row, got in zip(prompts, labels, scores, strict=True):
            assert got == pytest.approx([slow_score(model, prompt, one) for one in row], abs=1e-3)
        assert runner.pool.nbytes == 0


def test_labels_longer_than_a_window_are_scored_behind_the_same_prompt() -> None:
    """A pass that wide cannot be taken back by a length: the next label would miss the prompt."""
    rng = random.Random(3)
    model = build("gemma3_text")
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in (70, 61)]
    labels = [[[rng.randrange(VOCABULARY) for _ in range(n)] for n in (50, 40, 3)]] * 2
    scores = Scorer(ModelRunner(model, 2)).score(prompts, labels)
    for prompt, row, got in zip(prompts, labels, scores, strict=True):
        assert got == pytest.approx([slow_score(model, prompt, one) for one in row], abs=1e-3)


def test_what_prompts_begin_with_is_fed_once() -> None:
    rng = random.Random(5)
    model, fed = make_model(), []
    runner = ModelRunner(model, 4)
    feed = runner.feed

    def counting(rows: Rows, step_size: int, *, wait: bool) -> None:
        fed.append(rows.tokens.size)
        feed(rows, step_size, wait=wait)

    runner.feed = counting  # type: ignore[method-assign]
    scorer = Scorer(runner)

    def check(begin: list[int], rows: int) -> int:
        fed.clear()
        prompts = [begin + [rng.randrange(VOCABULARY) for _ in range(3)] for _ in range(rows)]
        labels = [[[1], [2, 3], [2, 4, 5]] for _ in prompts]
        for prompt, row, got in zip(prompts, labels, scorer.score(prompts, labels), strict=True):
            assert got == pytest.approx([slow_score(model, prompt, one) for one in row], abs=1e-3)
        return sum(fed)

    # Of three tokens of its own the last one rides with the labels; the first may be in common.
    begin = [rng.randrange(VOCABULARY) for _ in range(40)]
    assert check(begin, 4) <= 40 + 4 * 2
    assert check(begin, 3) <= 3 * 2, "the next batch finds it"
    assert check(begin[:30], 3) <= 3 * 2, "and so does one that begins with a part of it"
    assert check(begin, 1) <= 2
    other = [token + 1 for token in begin[:20]]
    assert check(other, 2) <= 20 + 2 * 2
    assert check([], 2) == 2 * 2
    assert scorer.reused >= 3 * 40 + 3 * 40 + 3 * 30 + 40 + 20
    assert runner.pool.nbytes == 0


@pytest.mark.parametrize(
    ("prompts", "labels"), [([], []), ([[1]], []), ([[]], [[[1]]]), ([[1]], [[]]), ([[1]], [[[]]])]
)
def test_nothing_to_score_is_refused(prompts: list, labels: list) -> None:
    with pytest.raises(InvalidRequest, match="score"):
        Scorer(ModelRunner(make_model(), 2)).score(prompts, labels)


def test_prompts_that_are_read_together_have_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models that pack; and passes stay as small as they were asked to be."""
    sizes: list[int] = []
    forward = ModelRunner.forward

    def noting(self: ModelRunner, rows: Rows) -> mx.array:
        sizes.append(rows.tokens.size if rows.packing is None else len(rows.packing.rows))
        return forward(self, rows)

    monkeypatch.setattr(ModelRunner, "forward", noting)
    rng = random.Random(5)
    lengths = (3, 30, 7, 19, 28)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
    model = make_model("llama")
    runner = ModelRunner(model, 8)
    scores = Scorer(runner, 16).score(prompts, [[[4]]] * 5)
    assert runner.packs
    assert sum(sizes) == sum(lengths)  # the last tokens are a pass of their own
    assert max(sizes) <= 16
    assert len(sizes) <= 8
    for prompt, (got,) in zip(prompts, scores, strict=True):
        assert got == pytest.approx(slow_score(model, prompt, [4]), abs=1e-3)
