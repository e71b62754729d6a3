"""How prompts are put to the model."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config import ChatConfig
from mlx_spec.pipeline.flag_values import json_object
from mlx_spec.pipeline.flags.setting import setting
from mlx_spec.pipeline.options import option

_chat = setting(ChatConfig, "Prompts")


@dataclass(frozen=True)
class PromptFlags:
    """How prompts are put to the model."""

    system_prompt: str | None = _chat("system_prompt", "For the chat template.")
    prefill_response: str | None = _chat(
        "prefill_response", "How the answer begins; the model goes on.", metavar="TEXT"
    )
    ignore_chat_template: bool = option(False, "Feed the prompts as they are.", group="Prompts")
    chat_template_config: str | None = _chat(
        "chat_template_config",
        """Keywords for the chat template: '{"enable_thinking": false}'.""",
        metavar="JSON",
        parse=json_object,
    )
