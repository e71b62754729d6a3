"""OpenAI's own Python client against the live server: what people who have it would try."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from mlx_spec import generate
from tests.api_support import TEMPLATE, model, tokenizer
from tests.clients import HI, only, openai_client, plain_server, thinking_server
from tests.servers import Live

LOOK: dict[str, Any] = {
    "name": "look",
    "description": "Looks.",
    "parameters": {
        "type": "object",
        "properties": {"at": {"enum": ["sky", "sea"]}},
        "required": ["at"],
        "additionalProperties": False,
    },
    "strict": True,
}
TOOLS: list[Any] = [{"type": "function", "function": LOOK}]
CALL = '<tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call>'


class Fruit(BaseModel):
    """What a text must be."""

    name: Literal["apple", "pear"]
    ripe: bool


@pytest.fixture(scope="module")
def plain() -> Iterator[Live]:
    with plain_server() as server:
        yield server


@pytest.fixture(scope="module")
def thinking() -> Iterator[Live]:
    with thinking_server() as server:
        yield server


def test_several_texts_have_seeds_of_their_own(plain: Live) -> None:
    client = openai_client(plain)
    options: dict[str, Any] = {"temperature": 0.9, "max_tokens": 12}
    made = client.chat.completions.create(model="x", messages=HI, n=3, seed=5, **options)
    expected = [
        generate(model(), tokenizer(TEMPLATE), HI, seed=seed, **options).text for seed in (5, 6, 7)
    ]
    assert [one.message.content for one in made.choices] == expected
    assert [one.index for one in made.choices] == [0, 1, 2]
    usage = made.usage
    assert usage is not None
    assert usage.prompt_tokens == len(
        tokenizer(TEMPLATE).apply_chat_template(HI, add_generation_prompt=True)
    )
    streamed = dict.fromkeys(range(3), "")
    last = None
    for chunk in client.chat.completions.create(
        model="x",
        messages=HI,
        n=3,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
        **options,
    ):
        last = chunk
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == expected
    assert last is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == usage.completion_tokens


def test_likelihoods(plain: Live) -> None:
    client = openai_client(plain)
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    chat = client.chat.completions.create(
        model="x", messages=HI, logprobs=True, top_logprobs=2, **options
    )
    choice = chat.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    found = choice.logprobs.content
    assert b"".join(bytes(one.bytes or []) for one in found).decode(errors="replace") == (
        choice.message.content
    )
    # Greedy: the likeliest token is the one that was said.
    assert all(one.top_logprobs[0].logprob == one.logprob for one in found)
    text = client.completions.create(model="x", prompt="def", logprobs=2, echo=True, **options)
    scores = text.choices[0].logprobs
    assert scores is not None
    assert scores.token_logprobs is not None
    assert scores.token_logprobs[0] is None
    assert "".join(scores.tokens or []) == text.choices[0].text
    ids = tokenizer(TEMPLATE).encode("def")
    by_ids = client.completions.create(model="x", prompt=[ids, ids], **options)
    whole = text.choices[0].text
    assert {one.text for one in by_ids.choices} == {whole.removeprefix("def")}


def test_a_prediction_is_a_draft(plain: Live) -> None:
    client = openai_client(plain)
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0.9, "seed": 3}
    before = client.chat.completions.create(model="x", messages=HI, **options)
    text = before.choices[0].message.content or ""
    after = client.chat.completions.create(
        model="x", messages=HI, prediction={"type": "content", "content": text}, **options
    )
    assert after.choices[0].message.content == text
    details = after.usage and after.usage.completion_tokens_details
    assert details
    assert (details.accepted_prediction_tokens or 0) >= 10
    assert details.rejected_prediction_tokens is not None


def test_structured_output(plain: Live) -> None:
    client = openai_client(plain)
    chat = client.chat.completions.parse(
        model="x", messages=HI, response_format=Fruit, max_tokens=60
    )
    assert chat.choices[0].message.parsed is not None
    assert chat.choices[0].finish_reason == "stop"
    response = client.responses.parse(model="x", input="a", text_format=Fruit)
    assert isinstance(response.output_parsed, Fruit)
    plain_object = client.chat.completions.create(
        model="x", messages=HI, response_format={"type": "json_object"}, max_tokens=60
    )
    choice = plain_object.choices[0]
    assert (choice.message.content or "").startswith("{")
    if choice.finish_reason == "stop":
        json.loads(choice.message.content or "")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="x", messages=HI, response_format=Fruit, max_tokens=2)


def test_tools_are_called_at_once_and_streamed(thinking: Live) -> None:
    client = openai_client(thinking)
    text = f"<think>Hm.\n</think>\n\nWell.\n{CALL}\n{CALL}"
    options: dict[str, Any] = {
        "model": "x",
        "messages": HI,
        "tools": TOOLS,
        "extra_body": only(text),
    }
    chat = client.chat.completions.create(max_tokens=200, **options)
    choice = chat.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Well."
    assert choice.message.reasoning_content == "Hm."  # type: ignore[attr-defined]
    calls: Any = choice.message.tool_calls
    assert [(one.function.name, one.function.arguments) for one in calls] == [
        ("look", '{"at": "sky"}')
    ] * 2
    assert len({one.id for one in calls}) == 2
    usage: Any = chat.usage
    assert usage.completion_tokens_details.reasoning_tokens > 0
    with client.chat.completions.stream(max_tokens=200, **options) as stream:
        final = stream.get_final_completion()
    again: Any = final.choices[0].message
    assert again.content == "Well."
    assert [one.function.parsed_arguments for one in again.tool_calls] == [{"at": "sky"}] * 2
    assert final.choices[0].finish_reason == "tool_calls"
    chunks = client.chat.completions.create(max_tokens=200, stream=True, **options)
    deltas = [
        call for one in chunks if one.choices for call in one.choices[0].delta.tool_calls or []
    ]
    named = [one for one in deltas if one.function.name]
    assert [(one.index, one.function.name, one.function.arguments) for one in named] == [
        (0, "look", ""),
        (1, "look", ""),
    ]
    assert len(deltas) > 6  # as they come
    for number, call in enumerate(chat.choices[0].message.tool_calls or []):
        parts = [one.function.arguments for one in deltas if one.index == number]
        assert "".join(parts) == call.function.arguments == '{"at": "sky"}'
    alone = client.chat.completions.create(max_tokens=200, parallel_tool_calls=False, **options)
    assert len(alone.choices[0].message.tool_calls or []) == 1
    short = client.chat.completions.create(max_tokens=30, **options)
    assert short.choices[0].finish_reason == "length"
    ignored = client.chat.completions.create(max_tokens=200, **{**options, "tool_choice": "none"})
    assert ignored.choices[0].finish_reason == "stop"
    assert CALL in (ignored.choices[0].message.content or "")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_call_can_be_required_of_any_model(plain: Live, choice: Any) -> None:
    client = openai_client(plain)
    options: dict[str, Any] = {
        "model": "x",
        "messages": HI,
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 80,
    }
    chat = client.chat.completions.create(**options)
    [call] = chat.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["at"] in ("sky", "sea")
    assert chat.choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(**options) as stream:
        [again] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert again.function.arguments == call.function.arguments


def test_responses_are_typed(thinking: Live) -> None:
    client = openai_client(thinking)
    text = f"<think>Hm.</think>Well.{CALL}"
    tools: list[Any] = [{"type": "function", **LOOK}]
    response = client.responses.create(
        model="x", input="a", tools=tools, max_output_tokens=99, extra_body=only(text)
    )
    items: list[Any] = response.output
    assert [one.type for one in items] == ["reasoning", "message", "function_call"]
    assert response.output_text == "Well."
    assert items[0].content[0].text == "Hm."
    assert json.loads(items[2].arguments) == {"at": "sky"}
    assert response.status == "completed"
    kinds = []
    with client.responses.stream(
        model="x", input="a", tools=tools, max_output_tokens=99, extra_body=only(text)
    ) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_response()
    assert [one.type for one in final.output] == [one.type for one in items]
    assert final.output_text == "Well."
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.reasoning_text.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    # What it said is what a next turn begins with.
    turn = [{"role": "user", "content": "a"}, *(one.model_dump(exclude_none=True) for one in items)]
    answer = {"type": "function_call_output", "call_id": items[2].call_id, "output": "blue"}
    after = client.responses.create(
        model="x", input=[*turn, answer], tools=tools, extra_body=only("Blue.")
    )
    assert after.output_text == "Blue."
    cut = client.responses.create(model="x", input="a", max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_talk_goes_on_with_what_tools_said(thinking: Live) -> None:
    client = openai_client(thinking)
    options: dict[str, Any] = {"model": "x", "tools": TOOLS, "max_tokens": 99}
    first = client.chat.completions.create(messages=HI, extra_body=only(CALL), **options)
    message = first.choices[0].message
    assert message.content is None
    [call] = message.tool_calls or []
    talk: list[Any] = [
        *HI,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "blue"},
    ]
    second = client.chat.completions.create(messages=talk, extra_body=only("Blue."), **options)
    assert second.choices[0].message.content == "Blue."
    assert second.choices[0].finish_reason == "stop"


def test_a_shape_holds_behind_reasoning(thinking: Live) -> None:
    """Where a template opens reasoning, the model may reason, and then must write JSON."""
    client = openai_client(thinking)
    ends = 2049  # which a random model would seldom say
    options: dict[str, Any] = {
        "model": "x",
        "messages": HI,
        "max_tokens": 99,
        "temperature": 1,
        "seed": 3,
        "logit_bias": {str(ends): 5},
    }
    asked = {"chat_template_kwargs": {"enable_thinking": True}}
    chat = client.chat.completions.parse(response_format=Fruit, extra_body=asked, **options)
    message = chat.choices[0].message
    assert message.parsed is not None
    assert message.reasoning_content  # type: ignore[attr-defined]
    named = {"type": "function", "function": {"name": "look"}}
    called = client.chat.completions.create(
        tools=TOOLS, tool_choice=named, extra_body=asked, **options
    ).choices[0]
    [call] = called.message.tool_calls or []
    assert json.loads(call.function.arguments)["at"] in ("sky", "sea")  # type: ignore[union-attr]
    assert called.message.reasoning_content  # type: ignore[attr-defined]
    assert called.finish_reason == "tool_calls"
    # Unless it is asked for, nothing is reasoned.
    calm = client.chat.completions.parse(response_format=Fruit, **options).choices[0].message
    assert calm.parsed is not None
    assert not hasattr(calm, "reasoning_content")


def test_mistakes_are_errors_of_the_client(plain: Live) -> None:
    client = openai_client(plain)
    wrong: list[dict[str, Any]] = [
        {"temperature": -1},
        {"max_tokens": 0},
        {"n": 2, "temperature": 0},
        {"tools": TOOLS},
        {"extra_body": {"temperature": "hot"}},
        {"extra_body": {"mirostat": 2}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": "x " * 2000}]},
    ]
    for fields in wrong:
        for stream in (False, True):
            options = {"model": "x", "messages": HI, "stream": stream, **fields}
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**options)
            assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "context_length_exceeded"
