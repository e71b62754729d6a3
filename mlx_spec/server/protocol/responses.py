"""OpenAI's ``/v1/responses`` in its text form: nothing is kept between requests.

The stream is in ``responses_stream``, the way of its items to the template in ``responses_input``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence as Seq
from typing import Any

from pydantic import BaseModel, Field

from mlx_spec.config import SamplingParams, Structure
from mlx_spec.errors import InvalidRequest
from mlx_spec.results import GenerationResult
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.conversations import Conversation, templated
from mlx_spec.server.protocol.dialect import StreamWriter
from mlx_spec.server.protocol.ends import ended_itself, said_logprobs
from mlx_spec.server.protocol.faults import Fault, openai_error
from mlx_spec.server.protocol.fields import (
    Extension,
    ShapeFields,
    predicted,
    sampling_of,
    structure_of,
)
from mlx_spec.server.protocol.likelihoods import LogprobWriter
from mlx_spec.server.protocol.parts import Reading, Said, blocks_of
from mlx_spec.server.protocol.refused import effort_keywords, variables
from mlx_spec.server.protocol.responses_input import chat_messages_of, function_tools
from mlx_spec.server.protocol.responses_stream import ResponseStream
from mlx_spec.server.protocol.responses_words import COMPLETED, INCOMPLETE, ResponseWords
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.shapes import reasoned_first
from mlx_spec.server.protocol.tools import ToolUse

LOGPROBS = "message.output_text.logprobs"


class ResponsesBody(ShapeFields):
    """The body of ``/v1/responses``."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    prompt: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    mlx_spec: Extension | None = None


class Responses:
    """The dialect."""

    name = "responses"
    body: type[BaseModel] = ResponsesBody

    def read(self, body: ResponsesBody, served: ServedModel) -> Asked:
        """What a body asks for."""
        if body.prompt is not None:
            raise InvalidRequest("prompt cannot be used here: prompts are not kept, send input")
        if body.truncation not in (None, "disabled", "auto"):
            raise InvalidRequest(f"truncation is {body.truncation!r}, expected 'disabled'")
        tools = tools_of(body, served)
        sampling = self._sampling(body, tools, served)
        messages = chat_messages_of(body.instructions, body.input)
        shaped = sampling.structure is not None
        talk = Conversation(messages, tools, _keywords(body), shaped=shaped)
        ids, thinking = templated(talk, served)
        sampling = reasoned_first(sampling, thinking, served.tokenizer)
        return Asked(
            prompts=(ids,),
            sampling=sampling,
            stream=bool(body.stream),
            include_usage=True,
            prediction=predicted(body.prediction),
            priority=body.priority or 0,
            show_drafts=bool(body.mlx_spec and body.mlx_spec.drafts),
            request_id=uuid.uuid4().hex,
            created=int(time.time()),
            body=body,
            thinking=thinking,
        )

    def _sampling(self, body: ResponsesBody, tools: ToolUse, served: ServedModel) -> SamplingParams:
        structure = tools.or_calls(structure_of(body, text_format=_format(body)))
        own: dict[str, Any] = {"structure": structure}
        if body.max_output_tokens is not None:
            own["max_tokens"] = body.max_output_tokens
        if body.top_logprobs or LOGPROBS in (body.include or ()):
            own |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
        sampling = sampling_of(body, served, **own)
        return tools.ending(sampling, served.tokenizer)

    def whole(
        self, asked: Asked, results: Seq[GenerationResult], served: ServedModel
    ) -> dict[str, Any]:
        """The answer at once."""
        [result] = results
        words, spelled = ResponseWords(asked, served), LogprobWriter(served.tokenizer)
        found = [spelled.chat(one) for one in said_logprobs(result, served.tokenizer) or ()]
        output = []
        blocks = blocks_of(_reading(asked, served), result, 0)
        for place, part in enumerate(blocks):
            taken, found = (found, []) if isinstance(part, Said) else ([], found)
            whole = ended_itself(result.finish_reason) or place < len(blocks) - 1
            status = COMPLETED if whole else INCOMPLETE
            output.append(words.item(place, part, status, logprobs=taken))
        return words.ended(results, output)

    def writer(self, asked: Asked, served: ServedModel) -> StreamWriter:
        """The answer as it comes."""
        return ResponseStream(ResponseWords(asked, served), _reading(asked, served))

    def error(self, fault: Fault) -> dict[str, Any]:
        """As OpenAI's APIs write it."""
        return openai_error(fault)


def tools_of(body: ResponsesBody, served: ServedModel) -> ToolUse:
    """What may be called.

    Raises:
        InvalidRequest: as ``responses_input.function_tools``.
    """
    parallel = body.parallel_tool_calls is not False
    return function_tools(body.tools or [], body.tool_choice, parallel, served.tokenizer)


def _reading(asked: Asked, served: ServedModel) -> Reading:
    return Reading.of(asked, served, tools_of(asked.body, served))


def _keywords(body: ResponsesBody) -> dict[str, Any]:
    """Keywords of the template."""
    keywords = effort_keywords((body.reasoning or {}).get("effort"))
    return keywords | variables(body.chat_template_kwargs)


def _format(body: ResponsesBody) -> Structure | None:
    """What the text must be; the schema stands right in its format here."""
    form = (body.text or {}).get("format")
    if form is None:
        return None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        if "schema" not in form:
            raise InvalidRequest("text.format of type json_schema has no schema")
        return Structure.json_schema(form["schema"])
    return Structure.of(form)


responses = Responses()
