"""The ready stages and their templates: what they ask, what they make of answers, bad options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline import collect
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.stage import Done, Generate, Score, Stage
from mlx_spec.pipeline.stages import STAGES
from mlx_spec.pipeline.stages.align import Align
from mlx_spec.pipeline.stages.classify import Classify
from mlx_spec.pipeline.stages.filter import Filter
from mlx_spec.pipeline.stages.generate import GenerateText
from mlx_spec.pipeline.stages.scored import probabilities
from mlx_spec.pipeline.stages.structure import StructureText
from mlx_spec.pipeline.templates import PromptTemplate
from tests.test_stage_runner import result

FIELDS = {"text": "Simmer the soup.", "id": 7}


# --- templates --------------------------------------------------------------------------------


def test_a_template_sees_all_fields() -> None:
    template = PromptTemplate("{{ a }} {{ record['odd name'] | upper }}{% if b %}!{% endif %}\n")
    assert template.render({"a": 1, "b": [0], "odd name": "x"}) == "1 X!\n"
    assert PromptTemplate("{{ self_ }}").render({"self_": "<&>"}) == "<&>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ title }}", r"\[t\] 'title' is undefined; the record's fields are: text, id"),
        ("{{ text.a.b }}", "has no attribute 'a'"),
        ("{{ text + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_what_a_template_cannot_do_is_an_error_of_the_record(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        PromptTemplate(source, "t").render(FIELDS)


def test_a_bad_template_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"\[prompt-template\] line 2: "):
        GenerateText(prompt_template="a\n{{ b")
    with pytest.raises(InvalidRequest, match="No such file"):
        PromptTemplate(f"@{tmp_path}/none")
    (tmp_path / "t.j2").write_text("Q: {{ text }}")
    stage = GenerateText(prompt_template=f"@{tmp_path}/t.j2")
    assert stage.prepare(FIELDS) == Generate("Q: Simmer the soup.")
    assert stage.prompt_template == "Q: {{ text }}"  # a resume compares the text, not the name


# --- generate ---------------------------------------------------------------------------------


def test_where_a_prompt_comes_from() -> None:
    stage = GenerateText()
    assert stage.prepare({"text": "t", "prompt": "p"}) == Generate("p")
    assert stage.prepare({"text": "t"}) == Generate("t")
    assert GenerateText(prompt_field="text").prepare({"text": "t", "prompt": "p"}) == Generate("t")
    assert stage.complete({}, result("out")) == Done({"output": "out"})
    messages = [{"role": "user", "content": "hi"}]
    chat = GenerateText(messages_field="m")
    assert chat.prepare({"m": messages}) == Generate(messages)
    assert chat.prepare({"m": '[{"role": "user", "content": "hi"}]'}) == Generate(messages)
    # Without a word about it: a table's row has all columns, empty where it is another kind.
    for row in ({"messages": messages}, {"prompt": None, "messages": messages, "text": None}):
        assert stage.prepare(row) == Generate(messages)
    assert stage.prepare({"prompt": "p", "messages": messages}) == Generate("p")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no field 'prompt', 'text' or 'messages'; the record's fields are: none"),
        ({"prompt": 3}, "field 'prompt' holds '3', expected text"),
        ({"prompt": " "}, "expected text"),
        ({"text": ""}, "field 'text' holds '', expected text"),
        ({"prompt": None}, "expected text"),
    ],
)
def test_a_record_without_a_prompt(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        GenerateText().prepare(fields)


@pytest.mark.parametrize("value", [None, [], "x", "[1]", [{"role": "user"}], [{"content": "a"}]])
def test_messages_that_are_none(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="field 'm'"):
        GenerateText(messages_field="m").prepare({"m": value})


# --- classify, filter, structure, align -------------------------------------------------------


def test_classify_asks_for_labels_and_ranks_them() -> None:
    stage = Classify(labels=("code", "cooking"))
    request = stage.prepare(FIELDS)
    assert isinstance(request, Score)
    assert request.labels == ("code", "cooking")
    assert "Simmer the soup." in str(request.prompt)
    assert not str(request.prompt).endswith(" ")
    done = stage.complete(FIELDS, {"code": -3.0, "cooking": -1.0})
    assert done.fields["label"] == "cooking"
    assert done.fields["scores"]["cooking"] == round(1 / (1 + math.exp(-2)), 4)
    assert sum(done.fields["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert probabilities({" a": -5000.0, " b": -1000.0}) == {"a": 0.0, "b": 1.0}


def test_what_is_neutral_is_the_prompt_with_other_texts() -> None:
    """The record's text is in none of them, wherever the template takes it from."""
    template = "{{ lang }}: {{ record['body'] }}/{{ body }}/{{ text }} Topic:"
    stage = Classify(labels=("a", "b"), field="body", prompt_template=template, neutral=("N/A", ""))
    request = stage.prepare({"body": "soup", "text": "other", "lang": "en"})
    assert request == Score(
        "en: soup/soup/soup Topic:",
        ("a", "b"),
        ("en: N/A/N/A/N/A Topic:", "en: // Topic:"),
    )
    assert Classify(labels=("a", "b"), calibration="none").prepare(FIELDS).neutral == ()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Filter(question="Is it clear?"), "question"),
        (Filter(question="Is it clear?"), "answers"),
        (Classify(labels=("a", "b"), prompt_template="{{ labels }} {{ text }}:"), "labels"),
        (Align(policy="Be kind."), "policy"),
        (Align(policy="Be kind.", mode="rewrite"), "policy"),
    ],
)
def test_a_record_s_own_field_does_not_take_a_variable_s_place(stage: Stage, name: str) -> None:
    assert stage.prepare({**FIELDS, name: "something else"}) == stage.prepare(FIELDS)


def test_two_kinds_are_named_and_yes_or_no_is_asked() -> None:
    asked = Filter(question="Is it clear?", answers=("No", "Yes"), chat=True).prepare(FIELDS)
    assert isinstance(asked, Score)
    assert asked.prompt == "Text: Simmer the soup.\nIs it clear?\nAnswer:"
    assert asked.labels == ("No", "Yes")
    assert asked.variants
    kinds = Align(policy="No ads.", answers=("advertisement", "recipe"))
    named = kinds.prepare(FIELDS)
    assert isinstance(named, Score)
    assert named.prompt == "Text: Simmer the soup.\nThis text is an example of"
    scores = {"advertisement": -1.0, "recipe": -2.0}
    assert kinds.complete(FIELDS, scores).fields == {"flagged": True, "policy_score": 0.7311}
    dropped = Filter(answers=("recipe", "advertisement")).complete(FIELDS, scores)
    assert dropped.fields["reason"] == "model: p(advertisement) 0.7311 >= 0.5"


def test_rules_alone_load_no_model() -> None:
    rows = collect(Filter(question="", min_chars=5), [FIELDS], Flags(model="/no/such/model"))
    assert rows[0]["keep"] is True


def test_filter_rules_cost_no_model_and_say_why() -> None:
    stage = Filter(min_chars=5, max_chars=20, must_match="[a-z]", must_not_match="http")
    cases = {
        "hi": "too short: 2 characters, 5 wanted",
        "x" * 21: "too long: 21 characters, 20 allowed",
        "12345": "does not match '[a-z]'",
        "see http://": "matches 'http'",
    }
    for text, reason in cases.items():
        expected = Done({"keep": False, "reason": reason}, dropped=True)
        assert stage.prepare({"text": text}) == expected
    for empty in ("", "  \n"):
        assert stage.prepare({"text": empty}) == Done(
            {"keep": False, "reason": "too short: 0 characters, 5 wanted"}, dropped=True
        )
    assert isinstance(stage.prepare(FIELDS), Score)
    assert Filter(question="").prepare(FIELDS) == Done({"keep": True, "reason": "all rules hold"})


def test_filter_follows_the_model_from_the_threshold_on() -> None:
    even = {"yes": -1.0, "no": -1.0}
    dropped = Filter(threshold=0.5).complete(FIELDS, even)
    assert dropped.dropped
    assert dropped.fields == {"keep": False, "reason": "model: p(no) 0.5000 >= 0.5"}
    kept = Filter(threshold=0.6).complete(FIELDS, even)
    assert not kept.dropped
    assert kept.fields == {"keep": True, "reason": "model: p(no) 0.5000 < 0.6"}


def test_structure_makes_instruction_and_response() -> None:
    one = StructureText()
    # The examples are no chat; an order of the user's own is.
    asked = one.prepare(FIELDS)
    assert isinstance(asked, Generate)
    assert asked.raw
    assert str(asked.prompt).endswith("\n\nText: Simmer the soup.\nQuestion:")
    for chat in (StructureText(mode="both"), StructureText(prompt_template="{{ text }}?")):
        assert not chat.prepare(FIELDS).raw  # type: ignore[union-attr]
    assert one.complete(FIELDS, result(" Say how to cook.\nMore")).fields == {
        "instruction": "Say how to cook.",
        "response": "Simmer the soup.",
    }
    both = StructureText(mode="both")
    answer = result(" Cook it.\nResponse: Simmer.\nTwo lines.\n")
    assert both.complete(FIELDS, answer).fields == {
        "instruction": "Cook it.",
        "response": "Simmer.\nTwo lines.",
    }
    for stage, text, words in [
        (one, "\n ", "instruction is empty"),
        (both, "Cook it.", "no 'Response:'"),
        (both, "Response: x", "instruction is empty"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            stage.complete(FIELDS, result(text))


def test_align_flags_or_rewrites() -> None:
    flag = Align(policy="No orders.", drop=True)
    assert flag.uses == "score"
    politely = Align(policy="Be polite.").prepare(FIELDS)
    assert "Policy: Be polite. Does" in str(politely.prompt)  # type: ignore[union-attr]
    done = flag.complete(FIELDS, {"yes": -1.0, "no": -2.0})
    assert done.dropped
    assert done.fields == {"flagged": True, "policy_score": 0.7311}
    rewrite = Align(policy="No orders.", mode="rewrite")
    assert isinstance(rewrite.prepare(FIELDS), Generate)
    assert rewrite.complete(FIELDS, result(" One simmers.\n")).fields == {"aligned": "One simmers."}
    with pytest.raises(InvalidRequest, match="empty"):
        rewrite.complete(FIELDS, result("\n"))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("classify", {}, "at least two"),
        ("classify", {"labels": ("a", "a")}, "at least two different"),
        ("classify", {"labels": ("a", " ")}, "one is empty"),
        ("classify", {"labels": ("a", "b"), "prompt_template": "{{"}, "line 1"),
        ("filter", {"threshold": 0}, "threshold=0"),
        ("filter", {"min_chars": 9, "max_chars": 3}, "max_chars=3"),
        ("filter", {"must_match": "("}, "must_match: missing"),
        ("filter", {"answers": ("yes",)}, "expected exactly 2"),
        ("classify", {"labels": ("a", "b"), "calibration": "batch"}, "calibration='batch'"),
        ("classify", {"labels": ("a", "b"), "neutral": ()}, "no neutral texts"),
        ("structure", {"mode": "x"}, "mode='x'"),
        ("align", {}, "policy is empty"),
        ("align", {"policy": "p", "mode": "x"}, "mode='x'"),
        ("align", {"policy": "p", "threshold": 2}, "threshold=2"),
        ("generate", {"prompt_field": "a", "messages_field": "b"}, "--prompt-field and --mess"),
        ("generate", {"output_field": "_record"}, "leading underscore"),
    ],
)
def test_bad_options_are_refused_with_their_value(
    kind: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        STAGES[kind](**options)
