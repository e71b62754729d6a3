"""A text that must have a shape, of a model whose template has it reason first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlx_spec.config import SamplingParams


def reasoned_first(sampling: SamplingParams, thinking: bool, tokenizer: Any) -> SamplingParams:
    """The same, with a shape that begins where reasoning has ended.

    Args:
        sampling: of a request.
        thinking: whether its prompt ends in the middle of reasoning.
        tokenizer: which knows what ends it.
    """
    structure = sampling.structure
    if structure is None or not thinking:
        return sampling
    return replace(sampling, structure=replace(structure, after=str(tokenizer.think_end)))
