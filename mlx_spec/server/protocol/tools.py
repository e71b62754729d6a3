"""Tools that a model may call: how templates take them, parsers read and grammars force calls.

``auto`` is what the model's own template and mlx-lm's parser for it do. Where a call is required,
the text is a JSON document that a schema forces (the arguments of the named function, or a list of
calls), as vLLM has it: that works with any model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlx_spec.config import SamplingParams, Structure
from mlx_spec.errors import InvalidRequest

MOST_CALLS = 16  # of one answer that must call
MOST_TOOLS = 256


@dataclass(frozen=True)
class ToolUse:
    """What an answer may call.

    Attributes:
        tools: functions, as OpenAI's chat API writes them, which templates know.
        mode: ``none``: calls are text like any other. ``auto``: the model decides. ``named``: the
            text is the arguments of ``name``. ``required``: it is a list of calls.
        name: the function that must be called.
        parallel: whether there may be several calls.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    mode: Literal["none", "auto", "named", "required"] = "none"
    name: str = ""
    parallel: bool = True

    @property
    def forced(self) -> bool:
        """Whether the whole text is calls."""
        return self.mode in ("named", "required")

    @property
    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """What the template is given."""
        return () if self.mode == "none" else self.tools

    def structure(self) -> Structure | None:
        """What forces the calls; None where nothing does."""
        if self.mode == "named":
            tool = next(tool for tool in self.tools if tool["function"]["name"] == self.name)
            return Structure.json_schema(_arguments(tool))
        return Structure.json_schema(self._list_schema()) if self.mode == "required" else None

    def or_calls(self, structure: Structure | None) -> Structure | None:
        """What the text must be where it must be something else, or else what forces the calls.

        Raises:
            InvalidRequest: both.
        """
        if structure is not None and self.forced:
            raise InvalidRequest("tool_choice wants a call, the text cannot have another shape")
        return structure or self.structure()

    def ending(self, sampling: SamplingParams, tokenizer: Any) -> SamplingParams:
        """The same sampling, ended behind the first call where there may be one only."""
        end = getattr(tokenizer, "tool_call_end", None)
        if self.mode != "auto" or self.parallel or not end:
            return sampling
        return replace(sampling, stop=(*sampling.stop_texts, end))

    def _list_schema(self) -> dict[str, Any]:
        """A list of calls, of any of the tools."""
        kinds = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": _moved(_arguments(tool), f"#/$defs/{place}"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for place, tool in enumerate(self.tools)
        ]
        schema: dict[str, Any] = {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_CALLS if self.parallel else 1,
            "items": {"anyOf": kinds},
        }
        if any("$ref" in json.dumps(_arguments(tool)) for tool in self.tools):
            places = range(len(self.tools))
            schema["$defs"] = {
                str(place): _moved(_arguments(self.tools[place]), f"#/$defs/{place}")
                for place in places
            }
        return schema


NO_TOOLS = ToolUse()


@dataclass(frozen=True)
class ToolCall:
    """One call that a model made.

    Attributes:
        name: the function.
        arguments: JSON text.
        id: what the tool's answer refers to; empty until it has one.
    """

    name: str
    arguments: str
    id: str = ""


def tool_use(
    tools: Seq[Mapping[str, Any]], mode: str, name: str, parallel: bool, tokenizer: Any
) -> ToolUse:
    """What a request may call.

    Args:
        tools: functions, as OpenAI's chat API writes them.
        mode: none, auto, required, or named.
        name: the function that must be called, where one is named.
        parallel: whether there may be several calls.
        tokenizer: of the model, which knows how it writes calls.

    Raises:
        InvalidRequest: tools that are none, a name that none of them has, or a model that writes no
            calls of its own where it is left to decide.
    """
    checked = tuple(_check(tool, f"tools.{place}") for place, tool in enumerate(tools))
    if len(checked) > MOST_TOOLS:
        raise InvalidRequest(f"{len(checked)} tools, at most {MOST_TOOLS} can be")
    names = [tool["function"]["name"] for tool in checked]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise InvalidRequest(f"tools: {twice!r} is there twice")
    if mode in ("named", "required") and not checked:
        raise InvalidRequest("tool_choice wants a call, but there are no tools")
    if mode == "named" and name not in names:
        raise InvalidRequest(f"tool_choice names {name!r}, the tools are {', '.join(names)}")
    if not checked or mode == "none":
        return ToolUse(checked)
    if mode == "auto" and not getattr(tokenizer, "has_tool_calling", False):
        raise InvalidRequest(
            "tools: this model has no way of its own to write tool calls; tool_choice 'required', "
            "or a function's name, makes it write one"
        )
    assert mode in ("auto", "named", "required")
    return ToolUse(checked, mode, name, parallel)  # type: ignore[arg-type]


def chosen(
    tools: Seq[Mapping[str, Any]], choice: Any, name: Any, parallel: bool, tokenizer: Any
) -> ToolUse:
    """What a request may call, as OpenAI's APIs say it.

    Args:
        tools, parallel, tokenizer: as for :func:`tool_use`.
        choice: ``none``, ``auto``, ``required``, or an object that names a function.
        name: what that object names, wherever it stands in it.

    Raises:
        InvalidRequest: a choice that is none, or as :func:`tool_use`.
    """
    if isinstance(choice, Mapping):
        if choice.get("type") != "function" or not isinstance(name, str):
            raise InvalidRequest(
                'tool_choice must be {"type": "function", ...} with a name, "none", "auto" or '
                '"required"'
            )
        return tool_use(tools, "named", name, parallel, tokenizer)
    choice = "auto" if choice is None else choice
    if choice not in ("none", "auto", "required"):
        raise InvalidRequest(f'tool_choice is {choice!r}, expected "none", "auto" or "required"')
    return tool_use(tools, choice, "", parallel, tokenizer)


def parsed_calls(text: str, tokenizer: Any, tools: Seq[Mapping[str, Any]]) -> list[ToolCall]:
    """The calls in what a model wrote between its markers; none where it is malformed."""
    try:
        found = tokenizer.tool_parser(text, list(tools))
        return [_call(one) for one in (found if isinstance(found, list) else [found])]
    except Exception:  # foreign code over what a model wrote
        return []


def listed_calls(text: str) -> list[ToolCall]:
    """The calls of a text that ``required`` forced; none where it is only the beginning of one."""
    try:
        return [_call(one) for one in json.loads(text)]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _call(found: Mapping[str, Any]) -> ToolCall:
    arguments = found.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name, given = found["name"], found.get("id")
    if not isinstance(name, str) or not name:
        raise ValueError("a call without a name")
    return ToolCall(name, arguments, str(given) if given else "")


def _check(tool: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    kind, function = tool.get("type", "function"), tool.get("function")
    if kind != "function":
        raise InvalidRequest(f"{where} is of type {kind!r}; only functions can be called")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f'{where} must be {{"type": "function", "function": {{"name": ...}}}}')
    if not function["name"]:
        raise InvalidRequest(f"{where} has an empty name")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise InvalidRequest(f"{where}.function.parameters must be a JSON schema")
    return tool


def _arguments(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments; one that says nothing takes any."""
    return dict(tool["function"].get("parameters") or {"type": "object"})


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references within itself lead to where it stands now."""
    if isinstance(schema, Mapping):
        return {
            key: f"{root}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(one, root) for one in schema] if isinstance(schema, list) else schema
