"""``ChatConfig``: how prompts go through a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.errors import InvalidRequest

# What a chat template is called with by us, and no user's keyword may replace.
_TEMPLATE_KEYWORDS = {
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
}


@dataclass(frozen=True)
class ChatConfig:
    """How prompts go through the tokenizer's chat template.

    Attributes:
        texts: a text is one message of the user. Where False, only lists of messages are
            templated and texts are fed as they are.
        system_prompt: a system message before each text; lists of messages bring their own.
        prefill_response: how the answer begins; the model goes on from there. It is part of the
            prompt and not of the output.
        chat_template_config: further keywords for the template, as mlx-lm's option of that name:
            ``{"enable_thinking": False}``.
        tools: descriptions of functions that the model may call, for templates that take them.

    Raises:
        InvalidRequest: a value of another type, or a keyword that the template is given by us.
    """

    texts: bool = True
    system_prompt: str | None = None
    prefill_response: str | None = None
    chat_template_config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tools: Seq[Any] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        for name in ("system_prompt", "prefill_response"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"[ChatConfig] {name}={value!r}, expected a text")
        config = self.chat_template_config
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise InvalidRequest(
                f"[ChatConfig] chat_template_config={config!r}, expected keywords and values"
            )
        for name in sorted(_TEMPLATE_KEYWORDS & config.keys()):
            hint = "give tools=[...]" if name == "tools" else "that is not for a user to set"
            raise InvalidRequest(f"[ChatConfig] chat_template_config names {name!r}: {hint}")
        if isinstance(self.tools, (str, bytes)) or not isinstance(self.tools, Seq):
            raise InvalidRequest(f"[ChatConfig] tools={self.tools!r}, expected a list")

    @classmethod
    def of(cls, chat: bool | ChatConfig) -> ChatConfig:
        """What ``chat=`` of the public functions means: True or False, or a config.

        Raises:
            InvalidRequest: anything else.
        """
        if isinstance(chat, bool):
            return cls(texts=chat)
        if not isinstance(chat, cls):
            raise InvalidRequest(
                f"[ChatConfig] chat={chat!r}, expected True, False or a ChatConfig"
            )
        return chat
