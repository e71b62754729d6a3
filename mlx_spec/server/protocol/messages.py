"""Anthropic's ``/v1/messages``, and how many tokens a request of it would read.

The stream is in ``messages_stream``, the way of its blocks to the template in ``messages_input``.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence as Seq
from typing import Any, Literal

from pydantic import BaseModel, Field

from mlx_spec.config import SamplingParams, Structure
from mlx_spec.errors import InvalidRequest
from mlx_spec.results import GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.conversations import Conversation, templated
from mlx_spec.server.protocol.dialect import StreamWriter
from mlx_spec.server.protocol.ends import matched_stop
from mlx_spec.server.protocol.faults import Fault, anthropic_error
from mlx_spec.server.protocol.fields import (
    Body,
    Extension,
    ShapeFields,
    sampling_of,
    stops_of,
    structure_of,
)
from mlx_spec.server.protocol.messages_input import chat_messages, tools_used
from mlx_spec.server.protocol.messages_stream import MessageStream, MessageWords
from mlx_spec.server.protocol.parts import Called, Part, Reading, Thought, blocks_of
from mlx_spec.server.protocol.refused import variables
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.shapes import reasoned_first
from mlx_spec.server.protocol.tools import ToolUse


class MessageTurn(Body):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class ToolChoice(Body):
    """``tool_choice``."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingChoice(Body):
    """``thinking``."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, description="not held: reasoning counts as output")


class MessagesBody(ShapeFields):
    """The body of ``/v1/messages``."""

    messages: list[MessageTurn]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingChoice | None = None
    output_format: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    mlx_spec: Extension | None = None


class Messages:
    """The dialect."""

    name = "messages"
    body: type[BaseModel] = MessagesBody

    def read(self, body: MessagesBody, served: ServedModel) -> Asked:
        """What a body asks for."""
        tools = tools_of(body, served)
        ids, thinking = prompt_of(body, tools, served)
        sampling = self._sampling(body, tools, served)
        sampling = reasoned_first(sampling, thinking, served.tokenizer)
        return Asked(
            prompts=(ids,),
            sampling=sampling,
            stream=bool(body.stream),
            include_usage=True,
            priority=body.priority or 0,
            show_drafts=bool(body.mlx_spec and body.mlx_spec.drafts),
            request_id=uuid.uuid4().hex,
            created=int(time.time()),
            body=body,
            thinking=thinking,
        )

    def _sampling(self, body: MessagesBody, tools: ToolUse, served: ServedModel) -> SamplingParams:
        structure = tools.or_calls(structure_of(body, output_format=_format(body)))
        own: dict[str, Any] = {"structure": structure}
        if body.stop_sequences is not None:
            own["stop"] = stops_of(body.stop_sequences)
        return tools.ending(sampling_of(body, served, **own), served.tokenizer)

    def whole(
        self, asked: Asked, results: Seq[GenerationResult], served: ServedModel
    ) -> dict[str, Any]:
        """The answer at once."""
        [result] = results
        words = MessageWords(asked, served)
        blocks = blocks_of(_reading(asked, served), result, 0)
        stop = _stop(asked, result, served)
        called = any(isinstance(one, Called) for one in blocks)
        return {
            **words.empty(),
            "content": [content_block(one) for one in blocks],
            **words.ending(result, called, stop),
            "usage": words.usage(results),
        }

    def writer(self, asked: Asked, served: ServedModel) -> StreamWriter:
        """The answer as it comes."""
        return MessageStream(
            MessageWords(asked, served),
            _reading(asked, served),
            lambda result: _stop(asked, result, served),
        )

    def error(self, fault: Fault) -> dict[str, Any]:
        """As Anthropic's API writes it."""
        return anthropic_error(fault)


def count_tokens(body: MessagesBody, served: ServedModel) -> dict[str, Any]:
    """The answer of ``/v1/messages/count_tokens``.

    Raises:
        InvalidRequest: as ``read``.
    """
    ids, _ = prompt_of(body, tools_of(body, served), served)
    return {"input_tokens": len(ids)}


def tools_of(body: MessagesBody, served: ServedModel) -> ToolUse:
    """What may be called.

    Raises:
        InvalidRequest: as ``messages_input.tools_used``.
    """
    choice = body.tool_choice.model_dump() if body.tool_choice else None
    return tools_used(body.tools or [], choice, served.tokenizer)


def prompt_of(body: MessagesBody, tools: ToolUse, served: ServedModel) -> tuple[list[int], bool]:
    """Token ids, and whether they end in the middle of reasoning.

    Raises:
        InvalidRequest: a block that cannot be read, or a template that refuses.
    """
    turns = [one.model_dump() for one in body.messages]
    keywords: dict[str, Any] = {}
    if "enable_thinking" not in served.chat.chat_template_config:
        # Here reasoning is what a request asks for, not what a template does by itself.
        wanted = body.thinking is not None and body.thinking.type != "disabled"
        keywords["enable_thinking"] = wanted
    keywords |= variables(body.chat_template_kwargs)
    goes_on = bool(turns) and turns[-1]["role"] == "assistant"
    talk = Conversation(chat_messages(body.system, turns), tools, keywords, goes_on)
    return templated(talk, served)


def content_block(part: Part) -> dict[str, Any]:
    """A block of an answer."""
    if isinstance(part, Called):
        name, given = part.call.name, _input(part.call.arguments)
        return {"type": "tool_use", "id": part.call.id, "name": name, "input": given}
    if isinstance(part, Thought):
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "text", "text": part.text}


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; what was cut off, or is none, is told as it is."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        given = None
    return given if isinstance(given, dict) else {"INVALID_JSON": arguments}


def _reading(asked: Asked, served: ServedModel) -> Reading:
    return Reading.of(asked, served, tools_of(asked.body, served))


def _stop(asked: Asked, result: GenerationResult, served: ServedModel) -> str | None:
    """The stop text of the request that ended its answer."""
    body: MessagesBody = asked.body
    stop = matched_stop(result, asked.sampling.stop_texts, served.tokenizer)
    own = asked.sampling.stop_texts if body.stop_sequences is None else body.stop_sequences
    return stop if stop in own else None


def _format(body: MessagesBody) -> Structure | None:
    form = body.output_format or (body.output_config or {}).get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or "schema" not in form:
        raise InvalidRequest('an output format must be {"type": "json_schema", "schema": {...}}')
    return Structure.json_schema(form["schema"])


messages = Messages()
