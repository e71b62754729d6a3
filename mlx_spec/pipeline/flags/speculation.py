"""Where guesses come from, and how far they go."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config import SpeculationConfig
from mlx_spec.config.speculation import ACCEPTANCE_RULES, DRAFTERS
from mlx_spec.pipeline.flags.setting import setting

_speculation = setting(SpeculationConfig, "Speculation", changes_text=False)


@dataclass(frozen=True)
class SpeculationFlags:
    """Where guesses come from, and how far they go."""

    enable_speculative: bool | None = _speculation(
        "enabled",
        "Guess ahead: with the draft model, which implies it; without one by n-grams of the text.",
        off="--no-speculative",
    )
    draft: str | None = _speculation(
        "draft",
        "Where guesses come from: " + ", ".join(DRAFTERS) + ", or several joined with +. Default: "
        "the draft model; without one ngram, where --enable-speculative asks for guesses.",
        metavar="KIND",
    )
    num_draft_tokens: int = _speculation(
        "num_draft_tokens", "Draft length; the maximum when adaptive."
    )
    adaptive: bool = _speculation(
        "adaptive",
        "Choose the draft length step by step, by measured cost and acceptance.",
        off="--no-adaptive",
    )
    acceptance: str = _speculation(
        "acceptance",
        "Which guesses stand: the target's own samples (a seed gives one text), or by rejection "
        "sampling (as exact in distribution; more stand).",
        choices=ACCEPTANCE_RULES,
        changes_text=True,
    )
    ngram_shared_bytes: int = _speculation(
        "ngram_shared_bytes",
        "Memory for what all requests have said, where ngram finds it again; 0: each its own text.",
    )
    draft_temperature: float | None = _speculation(
        "draft_temperature",
        "Temperature of guesses where texts are sampled; changes no text. Default: theirs.",
    )
