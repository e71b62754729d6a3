"""OpenAI's ``/v1/chat/completions``: what a body asks for, and the answer at once.

The stream of the same is in ``chat_stream``. Fields: OpenAI's reference of that route, and those of
mlx-lm, llama.cpp and vLLM that name something that is there (``fields``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence as Seq
from typing import Any, Literal

from pydantic import BaseModel, Field

from mlx_spec.config import SamplingParams
from mlx_spec.errors import InvalidRequest
from mlx_spec.results import GenerationResult, TokenLogprob
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.chat_stream import ChatStream
from mlx_spec.server.protocol.conversations import Conversation, templated
from mlx_spec.server.protocol.dialect import StreamWriter
from mlx_spec.server.protocol.ends import answer_finish, said_logprobs
from mlx_spec.server.protocol.faults import Fault, openai_error
from mlx_spec.server.protocol.fields import (
    Body,
    OpenAIFields,
    by_format,
    predicted,
    sampling_of,
    structure_of,
    texts_of,
)
from mlx_spec.server.protocol.likelihoods import LogprobWriter
from mlx_spec.server.protocol.parts import Called, Part, Reading, Said, Thought, blocks_of
from mlx_spec.server.protocol.refused import effort_keywords, variables
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.shapes import reasoned_first
from mlx_spec.server.protocol.tools import ToolCall, ToolUse, chosen
from mlx_spec.server.protocol.usage import TokenCounts

FINGERPRINT = "mlx-spec"


class ChatMessage(Body):
    """One message; what else it holds goes to the template."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any] | str] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatBody(OpenAIFields):
    """The body of ``/v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=-1, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning_format: str | None = Field(None, description="llama.cpp's: 'none' parts nothing")
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = Field(None, description="go on with the last message")


def tools_of(body: ChatBody, tokenizer: Any) -> ToolUse:
    """What may be called.

    Raises:
        InvalidRequest: a choice that is none, or as ``tool_use``.
    """
    choice: Any = body.tool_choice
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    parallel = body.parallel_tool_calls is not False
    return chosen(body.tools or [], choice, name, parallel, tokenizer)


def keywords_of(body: ChatBody) -> dict[str, Any]:
    """Keywords of the template that a body brings."""
    keywords = effort_keywords(body.reasoning_effort)
    if body.enable_thinking is not None:
        keywords["enable_thinking"] = body.enable_thinking
    return keywords | variables(body.chat_template_kwargs)


def reading_of(asked: Asked, served: ServedModel) -> Reading:
    """How the texts of a request are parted."""
    body: ChatBody = asked.body
    tools = tools_of(body, served.tokenizer)
    return Reading.of(asked, served, tools, split=body.reasoning_format != "none")


class ChatCompletions:
    """The dialect."""

    name = "chat_completions"
    body: type[BaseModel] = ChatBody

    def read(self, body: ChatBody, served: ServedModel) -> Asked:
        """What a body asks for."""
        tools = tools_of(body, served.tokenizer)
        sampling = self._sampling(body, tools, served)
        messages = [one.model_dump(exclude_none=True) for one in body.messages]
        goes_on = bool(body.continue_final_message)
        shaped = sampling.structure is not None
        talk = Conversation(messages, tools, keywords_of(body), goes_on, shaped)
        ids, thinking = templated(talk, served)
        sampling = reasoned_first(sampling, thinking, served.tokenizer)
        return Asked(
            prompts=(ids,),
            sampling=sampling,
            n=texts_of(body, sampling),
            stream=bool(body.stream),
            include_usage=body.wants_usage,
            prediction=predicted(body.prediction),
            priority=body.priority or 0,
            show_drafts=body.wants_drafts,
            request_id=uuid.uuid4().hex,
            created=int(time.time()),
            body=body,
            thinking=thinking,
        )

    def _sampling(self, body: ChatBody, tools: ToolUse, served: ServedModel) -> SamplingParams:
        structure = tools.or_calls(
            structure_of(body, response_format=by_format(body.response_format))
        )
        own: dict[str, Any] = {"structure": structure}
        if body.max_completion_tokens is not None:
            own["max_tokens"] = body.max_completion_tokens
        if body.logprobs:
            own |= {"logprobs": True, "top_logprobs": max(body.top_logprobs or 0, 0)}
        elif body.top_logprobs is not None and body.top_logprobs > 0:
            raise InvalidRequest("top_logprobs needs logprobs: true")
        return tools.ending(sampling_of(body, served, **own), served.tokenizer)

    def whole(
        self, asked: Asked, results: Seq[GenerationResult], served: ServedModel
    ) -> dict[str, Any]:
        """The answer at once."""
        how, spelled = reading_of(asked, served), LogprobWriter(served.tokenizer)
        choices = []
        for index, result in enumerate(results):
            blocks = blocks_of(how, result, index)
            called = any(isinstance(one, Called) for one in blocks)
            logprobs = said_logprobs(result, served.tokenizer)
            choices.append(
                {
                    "index": index,
                    "message": message_of(blocks),
                    "logprobs": None if logprobs is None else _content(logprobs, spelled),
                    "finish_reason": answer_finish(result.finish_reason, called),
                }
            )
        return {
            "id": f"chatcmpl-{asked.request_id}",
            "object": "chat.completion",
            "created": asked.created,
            "model": served.name,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": TokenCounts.of(asked, results, served.tokenizer).openai(),
        }

    def writer(self, asked: Asked, served: ServedModel) -> StreamWriter:
        """The answer as it comes."""
        return ChatStream(asked, served, reading_of(asked, served))

    def error(self, fault: Fault) -> dict[str, Any]:
        """As OpenAI's APIs write it."""
        return openai_error(fault)


def message_of(blocks: Seq[Part]) -> dict[str, Any]:
    """The assistant's message."""
    text = "".join(one.text for one in blocks if isinstance(one, Said))
    reasoning = "".join(one.text for one in blocks if isinstance(one, Thought))
    calls = [call_object(one.call) for one in blocks if isinstance(one, Called)]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not text else text,
        "refusal": None,
    }
    return {
        **message,
        **({"reasoning_content": reasoning} if reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def call_object(call: ToolCall) -> dict[str, Any]:
    """A call, as messages hold it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _content(found: Seq[TokenLogprob], spelled: LogprobWriter) -> dict[str, Any]:
    return {"content": [spelled.chat(one) for one in found], "refusal": None}


chat_completions = ChatCompletions()
