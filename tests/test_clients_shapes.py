"""Answers of a shape through OpenAI's client: marks in them are text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import HI, openai_client, thinking_server
from tests.servers import Live

LOOK = {"name": "look", "parameters": {"type": "object"}}
TOOLS: list[Any] = [{"type": "function", "function": LOOK}]


@pytest.fixture(scope="module")
def thinking() -> Iterator[Live]:
    with thinking_server() as server:
        yield server


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        ({"guided_choice": ["<think>"]}, {"<think>"}),
        ({"guided_choice": [" ", "<tool_call>"]}, {" ", "<tool_call>"}),
        ({"guided_regex": "(<think>)?</think>"}, {"<think></think>", "</think>"}),
        (
            {"response_format": {"type": "json_object", "schema": {"const": "<think>"}}},
            {'"<think>"'},
        ),
    ],
)
def test_marks_are_text_where_a_constraint_wants_them(
    thinking: Live, shape: dict[str, Any], texts: set[str]
) -> None:
    """Streamed and whole, at once and behind reasoning; it is no reasoning and no call."""
    client = openai_client(thinking)
    options: dict[str, Any] = {"model": "x", "messages": HI, "temperature": 1, "seed": 3}
    options |= {"max_tokens": 99, "logit_bias": {"2049": 5}, "tools": TOOLS}
    for think in (False, True):
        extra = {**shape, "chat_template_kwargs": {"enable_thinking": think}}
        whole = client.chat.completions.create(extra_body=extra, **options).choices[0]
        assert whole.finish_reason == "stop"
        assert whole.message.content in ({one.strip() for one in texts} if think else texts)
        assert hasattr(whole.message, "reasoning_content") is think
        stream = client.chat.completions.create(extra_body=extra, stream=True, **options)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(parts) == whole.message.content
