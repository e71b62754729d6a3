"""What a ``ChatConfig`` makes of a text or of messages, on their way through the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.batching.messages import chat_ids
from mlx_spec.config import ChatConfig
from mlx_spec.errors import InvalidRequest

RAW = ChatConfig(texts=False)


def text_ids(tokenizer: Any, text: str, chat: ChatConfig, where: str) -> list[int]:
    """Token ids of a text as the user's message, after the system prompt if there is one.

    Raises:
        InvalidRequest: there is no template, or it refuses.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequest(
            f"{where} is a text to be templated (chat=), but the tokenizer has no chat template"
        )
    turns = [{"role": "user", "content": text}]
    if chat.system_prompt is not None:
        turns.insert(0, {"role": "system", "content": chat.system_prompt})
    return turns_ids(tokenizer, turns, chat, where)


def turns_ids(
    tokenizer: Any, turns: Seq[Mapping[str, Any]], chat: ChatConfig, where: str
) -> list[int]:
    """Token ids of messages, ready for the answer or for the rest of it.

    Raises:
        InvalidRequest: as ``chat_ids``.
    """
    options = dict(chat.chat_template_config)
    if chat.tools:
        options["tools"] = list(chat.tools)
    if chat.prefill_response is not None:
        turns = [*turns, {"role": "assistant", "content": chat.prefill_response}]
        options |= {"add_generation_prompt": False, "continue_final_message": True}
    return chat_ids(tokenizer, turns, where, **options)
