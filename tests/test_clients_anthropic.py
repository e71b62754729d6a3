"""Anthropic's own Python client against the live server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients import HI, anthropic_client, only, thinking_server
from tests.servers import Live

TOOLS: list[Any] = [
    {
        "name": "look",
        "description": "Looks.",
        "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
    }
]
CALL = '<tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call>'


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with thinking_server() as server:
        yield server


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "x", "max_tokens": 99, "messages": HI, **more}


def test_a_message_and_its_stream(live: Live) -> None:
    client = anthropic_client(live)
    options = asked(system="Be.", extra_body={"seed": 4, "temperature": 0.9})
    made = client.messages.create(**{**options, "max_tokens": 12})
    assert made.role == "assistant"
    assert made.stop_reason in ("max_tokens", "end_turn")
    assert made.usage.output_tokens <= 12
    kinds = []
    with client.messages.stream(**{**options, "max_tokens": 12}) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_message()
    assert [one.model_dump() for one in final.content] == [one.model_dump() for one in made.content]
    assert final.stop_reason == made.stop_reason
    assert final.usage.output_tokens == made.usage.output_tokens
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def test_stop_sequences_are_named(live: Live) -> None:
    client = anthropic_client(live)
    made = client.messages.create(**asked(extra_body=only("one two three"), stop_sequences=["two"]))
    assert made.stop_reason == "stop_sequence"
    assert made.stop_sequence == "two"
    assert made.content[0].text == "one "  # type: ignore[union-attr]
    whole = client.messages.create(**asked(extra_body=only("one two three")))
    assert whole.stop_reason == "end_turn"
    assert whole.stop_sequence is None


def test_tools_are_called_and_answered(live: Live) -> None:
    client = anthropic_client(live)
    options = asked(tools=TOOLS, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    made = client.messages.create(**options)
    assert made.stop_reason in ("tool_use", "max_tokens")
    named = asked(tools=TOOLS, tool_choice={"type": "tool", "name": "look"})
    named["tools"] = [{**TOOLS[0], "input_schema": {"const": {"at": "sea"}}}]
    made = client.messages.create(**named)
    assert made.stop_reason == "tool_use"
    [use] = made.content
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("look", {"at": "sea"})
    with client.messages.stream(**named) as stream:
        [again] = stream.get_final_message().content
    assert again.type == "tool_use"
    assert again.input == {"at": "sea"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "blue"}
    talk = [
        *HI,
        {"role": "assistant", "content": made.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    after = client.messages.create(**asked(messages=talk, tools=TOOLS, extra_body=only("Blue")))
    assert after.content[0].text == "Blue"  # type: ignore[union-attr]
    count = client.messages.count_tokens(model="x", messages=talk, tools=TOOLS)
    used = after.usage
    assert count.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


def test_thinking_is_a_block(live: Live) -> None:
    """The template opens it where it is asked for; a random model never closes it."""
    client = anthropic_client(live)
    options = asked(max_tokens=8, extra_body={"logit_bias": {"2049": -100, "0": -100}})
    made = client.messages.create(**options, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [one.type for one in made.content] == ["thinking"]
    with client.messages.stream(
        **options, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        [block] = stream.get_final_message().content
    assert block.model_dump() == made.content[0].model_dump()


def test_mistakes_are_errors_of_the_client(live: Live) -> None:
    client = anthropic_client(live)
    image = {"type": "base64", "media_type": "image/png", "data": "aaaa"}
    wrong: list[dict[str, Any]] = [
        {"extra_body": {"temperature": -1}},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": image}]}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"extra_body": {"top_k": "many"}},
    ]
    for fields in wrong:
        for stream in (False, True):
            with pytest.raises(anthropic.BadRequestError) as caught:
                client.messages.create(**asked(stream=stream, **fields))
            body: Any = caught.value.body
            assert body["type"] == "error"
            assert body["error"]["type"] == "invalid_request_error"
