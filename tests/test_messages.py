"""Chat messages as clients and files write them: one form reaches the template, or one clear line.

Every prompt is compared with the ids of the text that the template should have made.
"""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec import BatchedMLXGenerator, SamplingParams, batch_generate
from mlx_spec.batching.messages import without_nulls
from mlx_spec.batching.prompts import encode
from mlx_spec.errors import InvalidRequest
from tests.api_support import TEMPLATE, ids, model, tokenizer
from tests.waiting import PATIENCE

TOOLS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if 'tool_calls' in m %}{% for call in m.tool_calls %}"
    "{{ call.function.name }}({% for k, v in call.function.arguments | items %}{{ k }}={{ v }};"
    "{% endfor %}){% endfor %}"
    "{% elif m.name is defined %}{{ m.name }}: {{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}<assistant>"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TEXT = {"type": "text", "text": "hello "}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def wanted(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    "content",
    [
        "hello there",
        [TEXT, {"type": "text", "text": "there"}],
        [{"type": "input_text", "text": "hello there"}],
        ["hello ", "there"],
        # A Parquet file's struct has every key of every part.
        [{"type": "text", "text": "hello there", "image_url": None}],
    ],
)
def test_text_parts_are_the_text(content: Any) -> None:
    """Stops Python's list, brackets and quotes, in the prompt."""
    found = encode(tokenizer(TEMPLATE), [user(content)])
    assert found == wanted("[user] hello there\n[assistant] ")


@pytest.mark.parametrize("extra", [{}, {"content": None}, {"content": None, "name": None}])
def test_a_message_that_only_calls_tools_reaches_the_template(extra: dict[str, Any]) -> None:
    messages = [
        user("1+2?", tool_calls=None, name=None),
        {"role": "assistant", "tool_calls": [{**CALL, "index": None}], **extra},
        {"role": "tool", "content": "3", "tool_calls": None, "name": "add"},
    ]
    found = encode(tokenizer(TOOLS), messages)
    assert found == wanted("<user>1+2?<assistant>add(a=1;b=2;)<tool>add: 3<assistant>")


def test_absent_content_is_never_the_word_none() -> None:
    messages = [user("x"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    source = "{{ messages[1].content }}{% if 'content' in messages[1] %}there{% endif %}<end>"
    assert encode(tokenizer(source), messages) == wanted("<end>")


@pytest.mark.parametrize("arguments", ['{"b":  1}', {"b": 1}])
def test_arguments_as_json_text_are_the_object(arguments: Any) -> None:
    """Stops JSON text inside JSON text, as OpenAI's clients keep a conversation."""
    function = {"name": "f", "arguments": arguments}
    messages = [user("x"), {"role": "assistant", "tool_calls": [{"function": function}]}]
    source = "{% set call = messages[1].tool_calls[0].function %}{{ call.arguments | tojson }}"
    assert encode(tokenizer(source), messages) == wanted('{"b": 1}')


MALFORMED: list[tuple[Any, str]] = [
    ([user("x"), {"content": "y"}], "message 2 has no role"),
    ([user("x"), {"role": None, "content": "y"}], "message 2 has no role"),
    ([{"role": 3, "content": "y"}], "message 1 has the role 3"),
    ([user("x"), "y"], "message 2 is str"),
    ([user("x"), None], "message 2 is NoneType"),
    ([user("x"), user(None)], r"message 2 \(user\) has neither content nor tool calls"),
    ([user(7)], "message 1 has content of type int"),
    ([user({"text": "x"})], "message 1 has content of type dict"),
    ([user([TEXT, {"type": "image_url", "image_url": {}}])], "message 1, part 2 is 'image_url'"),
    ([user([{"type": "text"}])], r"message 1, part 1 \(text\) holds no text"),
    ([user([7])], "message 1, part 1 is int"),
    ([user("a\ud800")], r"message 1 is not valid Unicode: .*'\\ud800', at character 2"),
]


@pytest.mark.parametrize(("messages", "words"), MALFORMED)
def test_a_malformed_message_is_named_by_its_number(messages: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        encode(tokenizer(TEMPLATE), messages)


REFUSING: list[tuple[str, str]] = [
    ("{{ raise_exception('no system role here') }}", "fails: no system role here"),
    ("{{ missing.attribute }}", "'missing' is undefined"),
    ("{{ 1 + 'a' }}", "TypeError: unsupported operand"),
    ("{% for %}", "Expected an expression|expected token"),
    ("{{ messages[5].role }}", "has no element 5"),
]


@pytest.mark.parametrize(("template", "words"), REFUSING)
def test_a_template_that_refuses_does_so_in_its_own_words(template: str, words: str) -> None:
    """One line of ours from every way in, also beside prompts that are good."""
    words_of = tokenizer(template)
    one = SamplingParams(max_tokens=1)
    with pytest.raises(InvalidRequest, match=words) as refused:
        batch_generate(model(), words_of, ["good", [user("x")]], sampling=one)
    assert "\n" not in str(refused.value)
    assert "prompt 2 of 2" in str(refused.value)
    with BatchedMLXGenerator(model(), words_of) as generator:
        good = generator.submit("good", one)
        with pytest.raises(InvalidRequest, match=words):
            generator.submit([user("x")], one)
        assert good.result(PATIENCE).finish_reason == "length"


def test_half_a_character_is_refused_in_a_text_too() -> None:
    with pytest.raises(InvalidRequest, match=r"the prompt is not valid Unicode.*character 3"):
        encode(tokenizer(), "ab\udfff")


def test_a_tokenizer_s_own_accident_is_an_error_of_the_prompt() -> None:
    class Failing:
        bos_token = None
        has_chat_template = False

        def encode(self, text: str, **_: Any) -> list[int]:
            raise KeyError("lost\npiece")

    with pytest.raises(InvalidRequest, match=r"the tokenizer fails: KeyError: .*lost"):
        encode(Failing(), "x")


def test_the_caller_s_messages_stay_as_they_are() -> None:
    """Some templates write into what they are given."""
    messages = [user([TEXT], name=None)]
    encode(tokenizer(TEMPLATE), messages)
    assert messages == [user([TEXT], name=None)]


def test_nulls_go_at_any_depth_but_not_out_of_lists() -> None:
    tool = {"name": "f", "x": None, "p": [{"enum": [None, "a"], "y": None}]}
    assert without_nulls(tool) == {"name": "f", "p": [{"enum": [None, "a"]}]}
    assert ids("x")  # the tokenizer that all of these use
