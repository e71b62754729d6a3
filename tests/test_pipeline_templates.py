"""Templates over records: the field reaches the prompt, and nothing of Python's own."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import numpy as np
import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.templates import PromptTemplate


def render(source: str, fields: dict[str, Any], **more: Any) -> str:
    return PromptTemplate(source, "t").render(fields, **more)


METHODS = ["items", "keys", "values", "get", "copy", "update", "pop", "clear", "setdefault"]


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("source", ["{{ meta.KEY }}", "{{ meta['KEY'] }}", "{{ record.meta.KEY }}"])
def test_a_field_wins_over_a_method_and_an_absent_one_is_an_error(key: str, source: str) -> None:
    source = source.replace("KEY", key)
    assert render(source, {"meta": {key: "abc"}}) == "abc"
    deep = source.replace("meta", "a[0].meta")
    assert render(deep, {"a": [{"meta": {key: "abc"}}]}) == "abc"
    with pytest.raises(InvalidRequest, match=r"has no attribute|unsafe"):
        render(source, {"meta": {"other": 1}})


def test_methods_that_are_called_work_where_no_field_hides_them() -> None:
    fields = {"meta": {"a": 1, "b": 2}, "text": "some words"}
    source = (
        "{% for k, v in meta.items() %}{{ k }}={{ v }};{% endfor %}{{ text.split()[1].upper() }}"
    )
    assert render(source, fields) == "a=1;b=2;WORDS"
    assert render("{{ meta.get('z', 'none') }}", fields) == "none"
    assert render("{{ '{}!'.format(text) }}", fields) == "some words!"
    with pytest.raises(InvalidRequest, match="unsafe"):
        render("{{ '{0.__class__}'.format(text) }}", fields)


def test_a_template_cannot_change_the_record() -> None:
    fields = {"meta": {"a": 1}, "tags": ["x"]}
    for source in ("{{ meta.update({'a': 2}) }}", "{{ tags.append('y') }}", "{{ meta.clear() }}"):
        with pytest.raises(InvalidRequest):
            render(source, fields)
    assert fields == {"meta": {"a": 1}, "tags": ["x"]}


NULL = {"text": None, "meta": {"score": None, "tags": ["a", None]}, "full": "x"}


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ("{{ text }}", "'text'"),
        ("Q: {{ record.text }}", "'text'"),
        ("{{ record['text'] }}", "'text'"),
        ("{{ meta.score }}", "'meta.score'"),
        ("{{ meta['score'] + 1 }}", "'meta.score'"),
        ("{{ meta.tags[1] }}", r"'meta.tags\[1\]'"),
        ("{{ meta.tags | join(', ') }}", r"'meta.tags\[1\]'"),
        ("{% for tag in meta.tags %}{{ tag }}{% endfor %}", r"'meta.tags\[1\]'"),
        ("{{ meta.tags }}", r"'meta.tags\[1\]'"),
        ("{{ meta }}", "'meta.score'"),
        ("{{ text ~ 'x' }}", "'text'"),
        ("{{ text | upper }}", "'text'"),
        ("{{ '%s' | format(text) }}", "'text'"),
        ("{{ text.lower() }}", "'text'"),
        ("{{ text | length }}", "'text'"),
        ("{% for letter in text %}x{% endfor %}", "'text'"),
        ("{% set x = text %}{{ x }}", "'text'"),
    ],
)
def test_null_is_an_error_that_names_the_field(source: str, field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"\[t\] field {field} is null"):
        render(source, NULL)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if text %}{{ text }}{% else %}-{% endif %}", "-"),
        ("{{ text or '-' }}", "-"),
        ("{{ text | default('-') }}", "-"),
        ("{{ meta.score | default('-') }}", "-"),
        ("{{ text if text else '-' }}", "-"),
        ("{{ '-' if text is none }}", "-"),
        ("{{ '-' if text == none }}", "-"),
        ("{{ 'x' if text is not none else '-' }}", "-"),
        ("{{ 'x' if text != none else '-' }}", "-"),
        ("{{ 'x' if text is string else '-' }}", "-"),
        ("{{ 'x' if text is defined else '-' }}", "-"),
        ("{{ 'x' if not text }}", "x"),
        ("{{ meta.tags | select | join(',') }}", "a"),
        ("{{ full if full is not none }}", "x"),
        ("{{ record | tojson }}", json.dumps(NULL)),
        ("{{ text | tojson }}", "null"),
    ],
)
def test_null_can_be_tested_and_replaced(source: str, text: str) -> None:
    assert render(source, NULL) == text


def test_records_of_a_notebook_have_numbers_and_times_of_other_libraries() -> None:
    fields = {"n": np.int64(3), "x": np.float32(0.5), "day": date(2026, 1, 2), "gone": np.nan}
    assert render("{{ n }} {{ x }} {{ day }} {{ n + 1 }}", fields) == "3 0.5 2026-01-02 4"
    assert render("{{ gone | default('-') }}", fields) == "-"


CODE = "if (a < b && c > 'd') return \"größer\"; // 日本"


def test_tojson_is_json_as_a_person_writes_it() -> None:
    """Stops HTML's escapes in a prompt about code."""
    assert render("{{ text | tojson }}", {"text": CODE}) == json.dumps(CODE, ensure_ascii=False)
    record = {"b": "x<y", "a": [1, True, None, {"k": 0.5}]}
    assert render("{{ record | tojson }}", record) == json.dumps(record)
    assert render("{{ a | tojson(indent=2) }}", {"a": {"b": 1}}) == '{\n  "b": 1\n}'
    with pytest.raises(InvalidRequest, match="'c' is undefined"):
        render("{{ c | tojson }}", record)
    with pytest.raises(InvalidRequest, match="'c' is undefined"):
        render("{{ [c] | tojson }}", record)


def test_record_and_the_stage_s_names_cannot_be_hidden_by_data() -> None:
    fields = {"record": "r", "labels": "mine", "prompt": "p"}
    assert render("{{ record['prompt'] }} {{ record.record }}", fields) == "p r"
    source = "{{ labels | join('/') }} {{ record.labels }}"
    assert render(source, fields, labels=["a", "b"]) == "a/b mine"


@pytest.mark.parametrize(
    "source",
    ["{{ range }}", "{{ dict }}", "{{ text.upper }}", "{{ tags | map('upper') }}", "{{ self }}"],
)
def test_what_is_no_value_is_not_printed(source: str) -> None:
    """Stops "<class 'range'>" for a field that is not there."""
    with pytest.raises(InvalidRequest):
        render(source, {"text": "x", "tags": ["a"]})


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000, "{{ " + "-" * 50_000 + "1 }}"])
def test_a_template_too_deep_for_python_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^\[t\]"):
        PromptTemplate(source, "t")
