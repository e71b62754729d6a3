"""Anthropic's messages and tools, as templates know them: OpenAI's chat messages.

A turn may hold several things; a template knows a message for each::

    user [tool_result, text]         tool, user
    assistant [thinking, tool_use]   assistant with reasoning and calls
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.protocol.tools import ToolUse, tool_use

_HIDDEN = ("redacted_thinking",)  # only Anthropic can read it


def chat_messages(system: Any, messages: Seq[Any]) -> list[dict[str, Any]]:
    """All messages of a conversation.

    Args:
        system: a text, or blocks of text; None without one.
        messages: each with a role and content, a text or blocks.

    Raises:
        InvalidRequest: a block that is no text here, with its place.
    """
    made: list[dict[str, Any]] = []
    if system:
        made.append({"role": "system", "content": _text(system, "system")})
    for place, message in enumerate(messages):
        role, content, where = message["role"], message["content"], f"messages.{place}"
        if isinstance(content, str):
            made.append({"role": role, "content": content})
        elif role == "assistant":
            made.append(_answer(content, where))
        else:
            made += _turn(role, content, where)
    return made


def tools_used(tools: Seq[Mapping[str, Any]], choice: Any, tokenizer: Any) -> ToolUse:
    """What may be called.

    Raises:
        InvalidRequest: tools that run elsewhere, or as ``tools.tool_use``.
    """
    functions = [_function(tool, f"tools.{place}") for place, tool in enumerate(tools)]
    choice = choice or {}
    kind, name = choice.get("type", "auto"), choice.get("name") or ""
    modes = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
    if not isinstance(kind, str) or kind not in modes or not isinstance(name, str):
        raise InvalidRequest(f"tool_choice.type is {kind!r}, expected one of {', '.join(modes)}")
    parallel = not choice.get("disable_parallel_tool_use")
    return tool_use(functions, modes[kind], name, parallel, tokenizer)


def _function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise InvalidRequest(f"{where} is of type {kind!r}; only tools of your own can be called")
    given = {"name": tool.get("name"), "description": tool.get("description")}
    parameters = tool.get("input_schema")
    function = {**given, "parameters": parameters}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


def _answer(blocks: Seq[Any], where: str) -> dict[str, Any]:
    """A turn of the assistant."""
    message: dict[str, Any] = {"role": "assistant"}
    texts, thoughts, calls = [], [], []
    for kind, block, place in _blocks(blocks, where):
        if kind == "text":
            texts.append(_text([block], place))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in _HIDDEN:
            raise _no_text(kind, place)
    message["content"] = "".join(texts)
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return message | ({"tool_calls": calls} if calls else {})


def _turn(role: str, blocks: Seq[Any], where: str) -> list[dict[str, Any]]:
    """A turn of the user: what tools said, and texts."""
    made, texts = [], []
    for kind, block, place in _blocks(blocks, where):
        if kind == "tool_result":
            content = block.get("content")
            said = _text(content, f"{place}.content") if content else ""
            message = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": said}
            made.append(message)
        elif kind == "text":
            texts.append(_text([block], place))
        else:
            raise _no_text(kind, place)
    return [*made, *([{"role": role, "content": "".join(texts)}] if texts or not made else [])]


def _blocks(blocks: Seq[Any], where: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    for place, block in enumerate(blocks):
        name = f"{where}.content.{place}"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if not isinstance(kind, str):
            raise InvalidRequest(f"{name} has no type, expected a content block")
        yield kind, block, name


def _text(content: Any, where: str) -> str:
    """A text, or that of blocks which hold nothing else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of text blocks")
    texts = []
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind != "text":
            raise _no_text(kind, where)
        if not isinstance(block.get("text"), str):
            raise InvalidRequest(f"{where} has a text block without text")
        texts.append(block["text"])
    return "".join(texts)


def _no_text(kind: Any, where: str) -> InvalidRequest:
    return InvalidRequest(f"{where} is {kind!r}; only text can be read here")
