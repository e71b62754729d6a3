"""What a caller predicts is a draft for its request alone: right, it saves steps; wrong, it costs
some; the text is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlx_spec import BatchedMLXGenerator, BatchingConfig, GenerationResult, SpeculationConfig
from mlx_spec.decoding.drafters.predicted import PredictedDrafter, PredictedRow, PredictedText
from mlx_spec.errors import InvalidRequest
from mlx_spec.sequence import Sequence
from tests.api_support import PROMPTS, draft_model, model, tokenizer
from tests.waiting import PATIENCE

Patch = pytest.MonkeyPatch

ONLY = SpeculationConfig(draft="predicted", num_draft_tokens=6, adaptive=False)
OPTIONS: dict[str, Any] = {"max_tokens": 40, "temperature": 0.8, "seed": 3, "ignore_eos": True}


def generator(speculation: SpeculationConfig = ONLY, **more: Any) -> BatchedMLXGenerator:
    batching = BatchingConfig(batch_size=4)
    return BatchedMLXGenerator(
        model(), tokenizer(), speculation=speculation, batching=batching, **more
    )


def run(predictions: list[Any], **more: Any) -> list[GenerationResult]:
    """One request for each, all at once, over four rows."""
    with generator(**more) as made:
        streams = [
            made.submit(prompt, prediction=prediction, **OPTIONS)
            for prompt, prediction in zip(PROMPTS, predictions, strict=True)
        ]
        return [stream.result(PATIENCE) for stream in streams]


@pytest.fixture(scope="module")
def plain() -> list[GenerationResult]:
    return run([None] * len(PROMPTS))


def said(results: list[GenerationResult]) -> list[list[int]]:
    return [result.token_ids for result in results]


def test_a_right_prediction_saves_steps_and_neighbours_see_none_of_it(
    plain: list[GenerationResult],
) -> None:
    """Every second request predicts its text, as tokens or as text; the others draft nothing."""
    predictions = [
        (result.token_ids if number % 4 else result.text) if number % 2 == 0 else None
        for number, result in enumerate(plain)
    ]
    results = run(predictions)
    assert said(results) == said(plain)
    for number, (result, alone) in enumerate(zip(results, plain, strict=True)):
        if number % 2:
            assert not result.drafted
            assert not result.drafters
            continue
        assert set(result.drafters) == {"predicted"}
        assert result.accepted >= 10
        # Text that was encoded again may part from what was said; tokens never do.
        if number % 4:
            assert result.accepted == result.drafted >= 30
            assert result.verify_steps < alone.verify_steps / 3


def test_a_prediction_of_another_text_changes_nothing(plain: list[GenerationResult]) -> None:
    results = run([result.token_ids[::-1] for result in plain])
    assert said(results) == said(plain)
    assert sum(result.drafted for result in results) > 0
    # It is soon not believed.
    assert all(result.drafted < 30 for result in results)


def test_it_works_beside_a_draft_model_by_default(plain: list[GenerationResult]) -> None:
    speculation = SpeculationConfig()
    predictions = [result.token_ids for result in plain]
    results = run(predictions, speculation=speculation, draft_model=draft_model())
    assert said(results) == said(plain)
    assert sum(result.drafters.get("predicted") is not None for result in results) >= 4


def test_several_texts_of_a_prompt_share_a_prediction(plain: list[GenerationResult]) -> None:
    with generator() as made:
        prediction = plain[0].token_ids
        streams = made.submit(PROMPTS[0], n=3, prediction=prediction, **OPTIONS)
        results = [stream.result(PATIENCE) for stream in streams]
        alone = made.submit(PROMPTS[0], n=3, **OPTIONS)
        assert said(results) == said([stream.result(PATIENCE) for stream in alone])
    assert results[0].accepted > 25


@pytest.mark.parametrize(
    ("prediction", "words"),
    [("half \ud800", "not valid Unicode"), ([1, -2], "token id"), ([1, "x"], "token id")],
)
def test_what_is_no_prediction_is_refused(prediction: Any, words: str) -> None:
    with generator() as made, pytest.raises(InvalidRequest, match=words):
        made.submit("x", prediction=prediction)


def test_it_is_refused_where_nothing_is_drafted() -> None:
    for options in ({}, {"draft": "predicted"}):
        with generator(SpeculationConfig(enabled=False, **options)) as made:
            with pytest.raises(InvalidRequest, match="nothing is drafted here"):
                made.submit("x", prediction="y")
            assert made.submit("x", prediction="", max_tokens=2).result(PATIENCE).token_ids


def test_nothing_else_need_be_drafted(plain: list[GenerationResult]) -> None:
    """By default a prediction is its own row's draft, and others have none."""
    with generator(SpeculationConfig()) as made:
        streams = [
            made.submit(prompt, prediction=None if i % 2 else one.token_ids, **OPTIONS)
            for i, (prompt, one) in enumerate(zip(PROMPTS, plain, strict=True))
        ]
        results = [stream.result(PATIENCE) for stream in streams]
    assert said(results) == said(plain)
    assert all((result.drafted > 0) is (i % 2 == 0) for i, result in enumerate(results))
    assert sum(result.accepted for result in results) > 25


def test_tokens_that_the_model_has_not_are_no_guess(plain: list[GenerationResult]) -> None:
    predictions = [[*result.token_ids[:3], 10**6, *result.token_ids[4:]] for result in plain]
    assert said(run(predictions)) == said(plain)


def follow(prediction: str, text: str) -> list[str]:
    """What is guessed after each character of a text, three at most."""
    row = PredictedRow(PredictedText([ord(one) for one in prediction]))
    sequence, found = Sequence([1]), []
    for one in text:
        sequence.tokens.append(ord(one))
        row.hear(sequence)
        found.append("".join(chr(token) for token, _ in row.guesses(3)))
    return found


def test_it_is_found_again_where_texts_part() -> None:
    said = follow("abcdefghij", "abcXdef")
    assert said[2] == "def"
    assert said[3] == ""
    assert said[4][0] == "e"
    assert said[6][0] == "g"
    # Of several places the next one; a token alone is enough nearby.
    assert follow("if a: b\nif a: c\nif a: d\n", "if a: b\nif ")[-1][0] == "a"
    assert follow("x = 1\ny = 1\nz = 1\n", "x = 1\ny = 2\n")[-1][0] == "z"
    assert follow("xy1" + "-" * 40 + "xy2xy3", "xy1Qxy")[-1][0] == "2"
    assert follow("xy1 xy2 xy3 pq", "xy1 pxy")[-1][0] == "3"
    assert follow("abc", "zzz") == ["", "", ""]
    assert follow("abc", "abc")[-1] == ""


def everybody_sees_it(patch: Patch) -> None:
    """The prediction of one row is that of the rows beside it."""
    join = PredictedDrafter.join

    def planted(self: PredictedDrafter, sequences: Any, longest: int) -> None:
        known = next((one.prediction for one in sequences if one.prediction), None)
        for one in sequences:
            one.prediction = one.prediction or known
        join(self, sequences, longest)

    patch.setattr(PredictedDrafter, "join", planted)


def never_asked(patch: Patch) -> None:
    """It has nothing to say."""
    patch.setattr(PredictedDrafter, "needs_host", False)


def never_believed(patch: Patch) -> None:
    """Its guesses are only looked at."""
    patch.setattr(PredictedRow, "promise", lambda row, most: 0.0)


@pytest.mark.parametrize("plant", [everybody_sees_it, never_asked, never_believed])
def test_a_planted_bug_is_noticed(
    plant: Callable[[Patch], None], plain: list[GenerationResult], monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_right_prediction_saves_steps_and_neighbours_see_none_of_it(plain)
