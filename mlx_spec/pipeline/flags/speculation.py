"""Where guesses come from, and how far they go."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.config import SpeculationConfig
from mlx_spec.pipeline.flags.setting import setting
from mlx_spec.pipeline.options import option

_speculation = setting(SpeculationConfig, "Speculation", changes_text=False)


@dataclass(frozen=True)
class SpeculationFlags:
    """Where guesses come from, and how far they go."""

    enable_speculative: bool | None = option(
        None,
        "Guess ahead with the draft model, which implies it.",
        group="Speculation",
        off="--no-speculative",
        changes_text=False,
    )
    num_draft_tokens: int = _speculation(
        "num_draft_tokens", "Draft length; the maximum when adaptive."
    )
    adaptive: bool = _speculation(
        "adaptive",
        "Choose the draft length step by step, by measured cost and acceptance.",
        off="--no-adaptive",
    )
