"""The items of a ``/v1/responses`` request, as templates know them: OpenAI's chat messages.

A call and what was thought before it are items of their own there, and one message in a chat::

    reasoning, function_call, function_call   assistant with reasoning and two calls
    function_call_output                      tool
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.protocol.tools import ToolUse, chosen

ROLES = ("system", "developer", "user", "assistant")


def chat_messages_of(instructions: str | None, given: str | Seq[Any]) -> list[dict[str, Any]]:
    """All messages of a conversation.

    Args:
        instructions: what the system says; None where it says nothing.
        given: a text of the user, or items.

    Raises:
        InvalidRequest: an item that is none here, with its place.
    """
    made: list[dict[str, Any]] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*made, {"role": "user", "content": given}]
    for place, item in enumerate(given):
        _add(made, item, f"input.{place}")
    return made


def function_tools(
    tools: Seq[Mapping[str, Any]], choice: Any, parallel: bool, tokenizer: Any
) -> ToolUse:
    """What may be called.

    Raises:
        InvalidRequest: tools that run elsewhere, a choice that is none, or as ``tools.tool_use``.
    """
    functions = [_function(tool, f"tools.{place}") for place, tool in enumerate(tools)]
    name = choice.get("name") if isinstance(choice, Mapping) else None
    return chosen(functions, choice, name, parallel, tokenizer)


def _function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = tool.get("type")
        raise InvalidRequest(f"{where} is of type {kind!r}; only functions can be called")
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _add(made: list[dict[str, Any]], item: Any, where: str) -> None:
    """Let an item follow."""
    if not isinstance(item, Mapping):
        raise InvalidRequest(f"{where} is {type(item).__name__}, expected an item")
    kind = item.get("type") or "message"
    if kind == "message":
        _add_message(made, item, where)
    elif kind == "reasoning":
        _answering(made)["reasoning_content"] = _reasoning(item)
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _answering(made).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        said, call_id = _text(item.get("output"), f"{where}.output"), item.get("call_id")
        made.append({"role": "tool", "tool_call_id": call_id, "content": said})
    else:
        raise InvalidRequest(f"{where} is of type {kind!r}, which cannot be read here")


def _add_message(made: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where} has the role {role!r}, expected one of {', '.join(ROLES)}")
    text = _text(item.get("content"), f"{where}.content")
    last = made[-1] if made else {}
    if role == "assistant" and last.get("role") == "assistant" and not last.get("content"):
        last["content"] = text  # behind its reasoning
    else:
        made.append({"role": role, "content": text})


def _answering(made: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of the assistant that grows."""
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant", "content": ""})
    return made[-1]


def _reasoning(item: Mapping[str, Any]) -> str:
    """What was thought, or its summary."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if isinstance(parts, list) and parts:
            return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))
    return ""


def _text(content: Any, where: str) -> str:
    """A text, or that of parts which hold nothing else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a text or a list of text parts")
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("input_text", "output_text", "text"):
            raise InvalidRequest(f"{where}.{place} is {kind!r}; only text can be read here")
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where}.{place} has no text")
        texts.append(part["text"])
    return "".join(texts)
