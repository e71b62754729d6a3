"""From a conversation to token ids, once: what the model is given, and whether it thinks there."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

from mlx_spec.batching.messages import check_messages
from mlx_spec.batching.prompts import encode
from mlx_spec.errors import InvalidRequest
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.protocol.tools import NO_TOOLS, ToolUse

TAIL = 16  # tokens of a prompt's end, in which reasoning begins


@dataclass(frozen=True)
class Conversation:
    """A conversation that is to go on.

    Attributes:
        messages: as OpenAI's chat API writes them.
        tools: what may be called.
        keywords: of the template, beside the server's own.
        goes_on: the last message is the beginning of the answer.
        shaped: a constraint says what the answer must be: it is not thought about first, unless
            the keywords say so.
    """

    messages: Seq[Mapping[str, Any]]
    tools: ToolUse = NO_TOOLS
    keywords: Mapping[str, Any] | None = None
    goes_on: bool = False
    shaped: bool = False


def templated(talk: Conversation, served: ServedModel) -> tuple[list[int], bool]:
    """Token ids, and whether the model is left in the middle of its reasoning.

    Raises:
        InvalidRequest: a malformed message, or one that the template refuses.
    """
    messages = [_as_template_knows(one) for one in talk.messages]
    if not messages:
        raise InvalidRequest("messages is empty")
    system = served.chat.system_prompt
    if system is not None and not any(one.get("role") == "system" for one in messages):
        messages.insert(0, {"role": "system", "content": system})
    prefill = served.chat.prefill_response
    if talk.goes_on:
        last = check_messages(messages, "messages")[-1]
        messages.pop()
        prefill = last.get("content")
        if last.get("role") != "assistant" or not isinstance(prefill, str) or not messages:
            raise InvalidRequest("to go on with it, the last message must be a text of 'assistant'")
    usual = {"enable_thinking": False} if talk.shaped else {}
    keywords = {**usual, **served.chat.chat_template_config, **(talk.keywords or {})}
    chat = replace(
        served.chat,
        texts=True,
        system_prompt=None,
        prefill_response=prefill,
        chat_template_config=keywords,
        tools=tuple(talk.tools.shown),
    )
    ids = encode(served.tokenizer, messages, "messages", chat)
    return ids, thinks(served.tokenizer, ids, prefill)


def thinks(tokenizer: Any, ids: Seq[int], prefill: str | None = None) -> bool:
    """Whether a prompt ends in the middle of reasoning: there the template, or the beginning of
    the answer, has opened it."""
    if not getattr(tokenizer, "has_thinking", False):
        return False
    begin, end = tokenizer.think_start, tokenizer.think_end
    if prefill and (begin in prefill or end in prefill):
        return bool(prefill.rfind(begin) > prefill.rfind(end))
    return str(tokenizer.decode(list(ids[-TAIL:]))).rstrip().endswith(begin)


def _as_template_knows(message: Mapping[str, Any]) -> dict[str, Any]:
    """Templates know no developer; what that says is the system's."""
    good = dict(message)
    if good.get("role") == "developer":
        good["role"] = "system"
    return good
