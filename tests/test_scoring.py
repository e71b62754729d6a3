"""Scores of labels: a ragged batch equals one label of one prompt at a time."""

from __future__ import annotations

import random
from itertools import chain

import mlx.core as mx
import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.model.prompt_passes import prompt_passes
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.pipeline.scoring.scorer import Scorer
from mlx_spec.pipeline.scoring.ways import ways
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
    begin_pass = runner.begin

    def counting(rows: Rows) -> mx.array:
        fed.append(rows.tokens.size)
        return begin_pass(rows)

    runner.begin = counting  # type: ignore[method-assign]
    scorer = Scorer(runner)

    def check(begin: list[int], rows: int) -> int:
        fed.clear()
        prompts = [begin + [rng.randrange(VOCABULARY) for _ in range(3)] for _ in range(rows)]
        labels = [[[1], [2, 3], [2, 4, 5]] for _ in prompts]
        for prompt, row, got in zip(prompts, labels, scorer.score(prompts, labels), strict=True):
            assert got == pytest.approx([slow_score(model, prompt, one) for one in row], abs=1e-3)
        return sum(fed)

    # Of three tokens of its own the first may be in common.
    begin = [rng.randrange(VOCABULARY) for _ in range(40)]
    assert check(begin, 4) <= 40 + 4 * 3
    assert check(begin, 3) <= 3 * 3, "the next batch finds it"
    assert check(begin[:30], 3) <= 3 * 3, "and so does one that begins with a part of it"
    assert check(begin, 1) <= 3
    other = [token + 1 for token in begin[:20]]
    assert check(other, 2) <= 20 + 2 * 3
    assert check([], 2) == 2 * 3
    assert scorer.reused >= 3 * 40 + 3 * 40 + 3 * 30 + 40 + 20
    assert runner.pool.nbytes == 0


@pytest.mark.parametrize(
    ("prompts", "labels"), [([], []), ([[1]], []), ([[]], [[[1]]]), ([[1]], [[]]), ([[1]], [[[]]])]
)
def test_nothing_to_score_is_refused(prompts: list, labels: list) -> None:
    with pytest.raises(InvalidRequest, match="score"):
        Scorer(ModelRunner(make_model(), 2)).score(prompts, labels)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each pass how many tokens it computed, and of how many their logits."""
    seen: list[tuple[int, int]] = []
    forward = ModelRunner.forward

    def noting(self: ModelRunner, rows: Rows) -> mx.array:
        logits = forward(self, rows)
        seen.append((rows.computed, logits.size // logits.shape[-1]))
        return logits

    monkeypatch.setattr(ModelRunner, "forward", noting)
    return seen


def texts(*lengths: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def test_prompts_that_are_read_together_have_no_holes(passes: list[tuple[int, int]]) -> None:
    """Of models that pack; and passes stay as small as they were asked to be."""
    lengths = (3, 30, 7, 19, 28)
    prompts = texts(*lengths)
    model = make_model("llama")
    runner = ModelRunner(model, 8)
    scores = Scorer(runner, 16).score(prompts, [[[4]]] * 5)
    assert runner.packs
    sizes = [tokens for tokens, _ in passes]
    assert sum(sizes) == sum(lengths)
    assert max(sizes) <= 16
    assert len(sizes) <= 8
    for prompt, (got,) in zip(prompts, scores, strict=True):
        assert got == pytest.approx(slow_score(model, prompt, [4]), abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "lfm2", "mamba"])
def test_short_prompts_are_one_pass_whose_last_tokens_alone_have_logits(
    family: str, passes: list[tuple[int, int]]
) -> None:
    """Also of a model that does something to its logits (a cap, a scale)."""
    model = make_model(family) if family == "llama" else build(family)
    runner = ModelRunner(model, 4)
    prompts = texts(6, 6, 6) if family in STATES else texts(5, 9, 6)
    scores = Scorer(runner).score(prompts, [[[4], [7]]] * 3)
    assert runner.chooses
    assert sum(said for _, said in passes) == 3
    if not runner.support.recurrence.probes:
        assert len(passes) == 1
    for prompt, got in zip(prompts, scores, strict=True):
        assert got == pytest.approx([slow_score(model, prompt, [one]) for one in (4, 7)], abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mamba"])
def test_labels_of_several_tokens_share_passes(family: str, passes: list[tuple[int, int]]) -> None:
    """Twelve labels, of which three begin as others do: ten texts behind each prompt, in one pass
    over copies of the prompts, and not a pass a label."""
    model = make_model(family) if family == "llama" else build(family)
    prompts = texts(12, 12, 12)
    labels = [[one, 9, 3 + one] for one in range(9)] + [[1, 9], [2, 9, 5, 6], [2, 9, 5, 6, 1]]
    scorer = Scorer(ModelRunner(model, 3))
    scores = scorer.score(prompts, [labels] * 3)
    behind = passes[-1]
    assert len(passes) <= 2
    assert behind[0] <= 3 * 10 * 4
    for prompt, got in zip(prompts, scores, strict=True):
        expected = [slow_score(model, prompt, label) for label in labels]
        assert got == pytest.approx(expected, abs=1e-3)
    again = scorer.score(prompts, [labels] * 3)
    assert [*chain(*again)] == pytest.approx([*chain(*scores)])


def test_copies_of_prompts_are_bounded(
    passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts are not copied once for every label."""
    model = make_model("llama")
    runner = ModelRunner(model, 2)
    most = 0
    fit = type(runner.pool)._grow

    def noting(self: object, slots: int, positions: int) -> None:
        nonlocal most
        most = max(most, slots * positions if self is runner.pool else 0)
        fit(self, slots, positions)  # type: ignore[arg-type]

    monkeypatch.setattr(type(runner.pool), "_grow", noting)
    prompts = texts(40, 50)
    labels = [[one, 2, 3] for one in range(12)]
    scores = Scorer(runner, 64).score(prompts, [labels] * 2)
    assert most <= 2 * 53 + 2 * 64
    assert len(passes) > 2 + 12 // 2
    for prompt, got in zip(prompts, scores, strict=True):
        expected = [slow_score(model, prompt, label) for label in labels]
        assert got == pytest.approx(expected, abs=1e-3)


def test_a_model_whose_head_cannot_be_shown_less_is_scored_in_two_passes(
    passes: list[tuple[int, int]],
) -> None:
    model = build("gpt_bigcode")  # row by row
    runner = ModelRunner(model, 2)
    prompts = texts(4, 7)
    scores = Scorer(runner).score(prompts, [[[4], [5, 6]]] * 2)
    assert not runner.chooses
    for prompt, got in zip(prompts, scores, strict=True):
        expected = [slow_score(model, prompt, label) for label in ([4], [5, 6])]
        assert got == pytest.approx(expected, abs=1e-3)


def test_labels_that_begin_alike_are_read_along_one_way() -> None:
    labels = [[1, 2, 3], [1, 2], [1, 2, 4, 5], [6], [7, 8], [1, 9, 9]]
    found = ways(labels)
    assert sorted((way.tokens, sorted(way.labels)) for way in found) == [
        ([1, 2, 4], [0, 1, 2]),
        ([1, 9], [5]),
        ([7], [4]),
    ]


def test_passes_are_few_and_even() -> None:
    """Every token once; holes only where a model needs them; long prompts in pieces."""

    def spans(lengths: list[int], most: int, **kind: bool) -> list[tuple[int, int, int, int]]:
        options = {"packs": True, "pads": True, **kind}
        found = list(prompt_passes(lengths, most, **options))
        for row, length in enumerate(lengths):
            own = [one for one in found if one.first <= row < one.end]
            read = [place for one in own for place in range(one.begin, min(one.stop, length))]
            assert read == list(range(length))
            assert [row < one.first + one.ended for one in own] == [False] * (len(own) - 1) + [True]
        return [(one.first, one.end, one.begin, one.stop) for one in found]

    assert spans([31] * 16, 256) == [(0, 8, 0, 31), (8, 16, 0, 31)]
    assert [b - a for a, b, *_ in spans([33] * 16, 256)] == [6, 6, 4]  # no pass of a few tokens
    assert spans([2, 3, 3, 4, 11], 6) == [
        (0, 2, 0, 3),
        (2, 3, 0, 3),
        (3, 4, 0, 4),
        (4, 5, 0, 5),
        (4, 5, 5, 11),
    ]
    assert spans([10, 70, 100, 160], 120) == [
        (0, 1, 0, 10),
        (1, 4, 0, 40),
        (1, 4, 40, 80),
        (2, 4, 80, 140),
        (3, 4, 140, 160),
    ]
    assert spans([4, 5, 90], 200, packs=False) == [(0, 2, 0, 5), (2, 3, 0, 90)]
    assert spans([4, 4, 5], 200, packs=False, pads=False) == [(0, 2, 0, 4), (2, 3, 0, 5)]
