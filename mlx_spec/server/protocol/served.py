"""``ServedModel``: what a dialect must know of the loaded model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_spec.config import ChatConfig, SamplingParams

DEFAULT_TOKENS = 512  # as mlx-lm's server has it


@dataclass(frozen=True)
class ServedModel:
    """The loaded model, as requests see it.

    Attributes:
        name: what answers call it.
        tokenizer: mlx-lm's wrapper: chat template, tool parser, thinking tokens.
        context: most tokens of prompt and answer together; None where there is no end.
        created: when it was loaded, in seconds of Unix time.
        defaults: of what a request does not say.
        chat: system prompt and template keywords of requests that bring none.
    """

    name: str
    tokenizer: Any
    context: int | None
    created: int
    defaults: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_tokens=DEFAULT_TOKENS)
    )
    chat: ChatConfig = field(default_factory=ChatConfig)
