"""A yes/no question as a statement: the rewording, the request, and the answer's probability."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlx_spec.pipeline.stage import Score
from mlx_spec.pipeline.stages.align import Align
from mlx_spec.pipeline.stages.filter import Filter
from mlx_spec.pipeline.statements import STATED, stated_breach, stated_question

FIELDS = {"text": "Simmer the soup."}


@pytest.mark.parametrize(
    ("question", "statement"),
    [
        ("Is this text an advertisement?", "is an advertisement."),
        (" is the message written in French? ", "is written in French."),
        ("Does this text contain a price?", "contains a price."),
        ("Does it carry on?", "carries on."),
        ("Does this text say thanks?", "says thanks."),
        ("Does this review express doubt?", "expresses doubt."),
        ("Does this text have a title?", "has a title."),
        ("Has this text a title?", "has a title."),
        ("Is this about cooking?", "is about cooking."),
        ("Is this recipe good?", ""),  # "this text is recipe good" it is not
        ("Is this text not good?", ""),
        ("Would you publish this text?", ""),
        ("Is this text good? Is it new?", ""),
        ("Is this text clear, complete and useful?", ""),
        ("Is this text rude or vulgar?", ""),
        ("Is this text good", ""),
        ("", ""),
    ],
)
def test_a_question_is_reworded_or_left(question: str, statement: str) -> None:
    assert stated_question(question) == statement


@pytest.mark.parametrize(
    ("policy", "statement"),
    [
        ("No advertising.", "is advertising."),
        ("no personal data", "is personal data."),
        ("No insults, no links.", ""),
        ("No one is named.", ""),
        ("Nothing rude.", ""),
        ("Be kind.", ""),
    ],
)
def test_a_ban_is_reworded_or_left(policy: str, statement: str) -> None:
    assert stated_breach(policy) == statement


def test_the_statement_goes_on_with_the_text_and_is_calibrated() -> None:
    shown = STATED.partition("{{ text }}")[0]
    for stage, statement in [
        (Filter(question="Is this text a joke?"), "is a joke."),
        (Align(policy="No jokes."), "is jokes."),
    ]:
        asked = stage.prepare(FIELDS)
        assert isinstance(asked, Score)
        assert asked.prompt == shown + "Simmer the soup.\nThis text"
        assert asked.labels == (statement,)
        assert len(asked.neutral) == 3
        assert not asked.variants


@pytest.mark.parametrize(
    "options",
    [
        {"chat": True},
        {"calibration": "none"},
        {"question": "Would you keep this text?"},
        {"prompt_template": "{{ text }} {{ question }}"},
    ],
)
def test_other_prompts_ask_for_yes_and_no_themselves(options: dict[str, Any]) -> None:
    asked = Filter(**{"question": "Is this text a joke?", **options}).prepare(FIELDS)
    assert isinstance(asked, Score)
    assert asked.labels == ("yes", "no")
    assert "joke" in str(asked.prompt) or "keep" in str(asked.prompt)


def test_a_text_that_makes_the_statement_likelier_is_a_yes() -> None:
    scores, share = {"is a joke.": 2.0}, round(1 / (1 + math.exp(-2)), 4)
    assert Align(policy="No jokes.").complete(FIELDS, scores).fields == {
        "flagged": True,
        "policy_score": share,
    }
    kept = Filter(question="Is this text a joke?").complete(FIELDS, scores)
    assert kept.fields == {"keep": True, "reason": f"model: p(no) {1 - share:.4f} < 0.5"}
    turned = Filter(question="Is this text a joke?", answers=("No", "Yes"))
    assert turned.complete(FIELDS, scores).dropped
