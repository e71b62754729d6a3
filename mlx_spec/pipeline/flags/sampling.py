"""How tokens are chosen, and when a text ends."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config import SamplingParams
from mlx_spec.pipeline.flags.setting import setting
from mlx_spec.pipeline.options import option

_sampling = setting(SamplingParams, "Sampling")


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are chosen, and when a text ends."""

    max_tokens: int | None = _sampling(
        "max_tokens",
        "Most tokens to generate, each prompt; -1: to the end of the model's context.",
        "-m",
    )
    temp: float = _sampling("temperature", "Temperature; 0 is greedy.", "--temperature")
    top_p: float = _sampling("top_p", "Nucleus, in (0, 1].")
    top_k: int = _sampling("top_k", "Most tokens to keep; 0 keeps all.")
    min_p: float = _sampling("min_p", "Least share of the best token's.")
    seed: int | None = _sampling(
        "seed",
        "Same seed, same text, in any batch.",
        changes_text=False,  # the checkpoint keeps the run's own
    )
    stop: tuple[str, ...] = _sampling("stop", "Text that ends it; repeatable.", metavar="TEXT")
    logprobs: bool = _sampling("logprobs", "Log-probability of each token, in JSON output.")
    top_logprobs: int = _sampling("top_logprobs", "And those of so many likeliest tokens, 0..20.")
    prompt_logprobs: bool = _sampling("prompt_logprobs", "The same of the prompt's tokens.")
    ignore_eos: bool = _sampling("ignore_eos", "Go on past end-of-sequence tokens.")
    extra_eos_token: tuple[str, ...] = option(
        (), "One more token that ends it; repeatable.", group="Sampling", metavar="TOKEN"
    )
