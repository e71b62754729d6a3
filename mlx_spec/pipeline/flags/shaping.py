"""What is done to logits before tokens are chosen, under mlx-lm's names."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config import SamplingParams
from mlx_spec.pipeline.flag_values import bias_object, token_ids
from mlx_spec.pipeline.flags.setting import setting

_sampling = setting(SamplingParams, "Sampling")
_WINDOW = "How many last tokens it looks at; 0: all."


@dataclass(frozen=True)
class ShapingFlags:
    """What is done to logits before tokens are chosen."""

    min_tokens_to_keep: int = _sampling("min_tokens_to_keep", "Tokens that min-p always leaves.")
    xtc_probability: float = _sampling(
        "xtc_probability", "How often the top choices are excluded; 0 never."
    )
    xtc_threshold: float = _sampling(
        "xtc_threshold", "Probability that makes a top choice, in [0, 0.5]."
    )
    repetition_penalty: float = _sampling(
        "repetition_penalty", "Divides logits of tokens said lately; 0 is off."
    )
    repetition_context_size: int = _sampling("repetition_context_size", _WINDOW)
    presence_penalty: float = _sampling("presence_penalty", "Taken from tokens said lately.")
    presence_context_size: int = _sampling("presence_context_size", _WINDOW)
    frequency_penalty: float = _sampling("frequency_penalty", "The same, for each time.")
    frequency_context_size: int = _sampling("frequency_context_size", _WINDOW)
    logit_bias: str | None = _sampling(
        "logit_bias",
        """Added to tokens' logits: '{"50256": -100}'.""",
        metavar="JSON",
        parse=bias_object,
    )
    min_tokens: int = _sampling("min_tokens", "No end before so many tokens.")
    stop_token_id: tuple[str, ...] = _sampling(
        "stop_token_ids",
        "Id of one more token that ends it; repeatable.",
        metavar="ID",
        parse=token_ids,
        default=(),
    )
