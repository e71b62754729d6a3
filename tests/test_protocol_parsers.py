"""Calls as models of several families write them: mlx-lm's parsers, behind our reader."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import pytest

from mlx_spec.server.protocol.parts import Called, Part, Reading, Said
from mlx_spec.server.protocol.tools import ToolUse

SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}, "far": {"type": "integer"}}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
WRITTEN = {
    "json_tools": (
        '<tool_call>\n{"name": "look", "arguments": {"at": "sea", "far": 2}}\n</tool_call>'
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=look>\n<parameter=at>\nsea\n</parameter>\n"
        "<parameter=far>\n2\n</parameter>\n</function>\n</tool_call>"
    ),
    "glm47": (
        "<tool_call>look<arg_key>at</arg_key><arg_value>sea</arg_value>"
        "<arg_key>far</arg_key><arg_value>2</arg_value></tool_call>"
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>"
        '{"at": "sea", "far": 2}<|tool_call_end|><|tool_calls_section_end|>'
    ),
    "pythonic": '<|tool_call_start|>[look(at="sea", far=2)]<|tool_call_end|>',
    "mistral": '[TOOL_CALLS]look[ARGS]{"at": "sea", "far": 2}',
}


@pytest.mark.parametrize("family", WRITTEN)
def test_calls_are_read_as_the_model_writes_them(family: str) -> None:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{family}")
    tokenizer = SimpleNamespace(
        has_tool_calling=True,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
        tool_parser=module.parse_tool_call,
    )
    reader = Reading(tokenizer, ToolUse((LOOK,), "auto"), request_id="r").reader(0)
    parts = list[Part]()
    for letter in f"I look.\n{WRITTEN[family]}":
        parts += reader.add(letter)
    parts += reader.finish(complete=True)
    assert "".join(one.text for one in parts if isinstance(one, Said)) == "I look."
    first, *more = [one for one in parts if isinstance(one, Called)]
    assert first.call.name == "look"
    assert first.call.id
    assert first.begins
    assert not any(one.begins for one in more)
    arguments = "".join(one.call.arguments for one in (first, *more))
    assert json.loads(arguments) == {"at": "sea", "far": 2}
    # Letter by letter, where they are JSON.
    assert (len(more) == len(arguments)) is (family in ("json_tools", "mistral", "kimi_k2"))
