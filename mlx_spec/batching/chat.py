"""From chat messages, or a text that is one, to token ids: the only place that applies a chat
template.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from mlx_spec.config import ChatConfig
from mlx_spec.errors import InvalidRequest

RAW = ChatConfig(texts=False)


def messages_of_text(text: str, chat: ChatConfig) -> list[dict[str, Any]]:
    """A text as the user's message, after the system prompt if there is one."""
    messages = [{"role": "user", "content": text}]
    if chat.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": chat.system_prompt})
    return messages


def template_ids(
    tokenizer: Any, messages: Seq[Mapping[str, Any]], chat: ChatConfig, where: str
) -> list[int]:
    """Token ids of messages under the tokenizer's template; ``where`` names them in errors.

    Raises:
        InvalidRequest: there is no template, or it refuses these messages.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequest(f"{where} is to be templated, but the tokenizer has no chat template")
    begun = chat.prefill_response is not None
    answer = [{"role": "assistant", "content": chat.prefill_response}] if begun else []
    keywords = dict(chat.chat_template_config)
    if chat.tools:
        keywords["tools"] = list(chat.tools)
    if begun:
        keywords["continue_final_message"] = True
    try:
        ids = tokenizer.apply_chat_template(
            [*messages, *answer], add_generation_prompt=not begun, **keywords
        )
    except Exception as error:  # the template's own words, or those of jinja and transformers
        reason = " ".join(str(error).split())
        raise InvalidRequest(
            f"{where}: the chat template refuses it ({type(error).__name__}: {reason})"
        ) from error
    return list(ids)
