"""Whether the parts of a loaded model belong together: weights, tokenizer, end tokens.

What would run and say nonsense without a word is refused here; what merely never happens is said.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.errors import ModelLoadError

_PLAIN = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.LayerNorm)


def check_fit(model: Any, tokenizer: Any, config: Mapping[str, Any]) -> None:
    """Refuse parts of different models.

    Args:
        model: as mlx-lm built it, its weights in place.
        tokenizer: mlx-lm's wrapper.
        config: what the model was built from.

    Raises:
        ModelLoadError: which part does not belong.
    """
    for path, module in model.named_modules():
        weight = module.get("weight") if type(module) in _PLAIN else None
        if weight is not None and not mx.issubdtype(weight.dtype, mx.floating):
            raise ModelLoadError(
                f"the weights hold {path}.weight as {_name(weight.dtype)}, and config.json names "
                "no quantization that mlx-lm would read it by"
            )
        base = getattr(module, "base", 1.0) if type(module) is nn.RoPE else 1.0
        if not isinstance(base, (int, float)) or base <= 0:
            raise ModelLoadError(f"config.json has rope_theta {base!r}, expected a positive number")
    _check_tokens(tokenizer, config)


def _check_tokens(tokenizer: Any, config: Mapping[str, Any]) -> None:
    """The tokenizer's ordinary tokens are the model's; added ones may lie beyond, unused."""
    text = config.get("text_config")
    size = config.get("vocab_size") or (text or {}).get("vocab_size")
    added = set(getattr(tokenizer, "added_tokens_encoder", {}))
    ordinary = [one for token, one in tokenizer.get_vocab().items() if token not in added]
    if not ordinary:
        raise ModelLoadError("the tokenizer (tokenizer.json) has no ordinary tokens")
    if isinstance(size, int) and max(ordinary) >= size:
        raise ModelLoadError(
            f"the tokenizer (tokenizer.json) has tokens up to {max(ordinary)}, the model {size} "
            "(vocab_size): it belongs to another model"
        )


def warn_of_no_end(tokenizer: Any, stacklevel: int = 2) -> None:
    """Say where no text of a model can end by itself.

    Warns:
        RuntimeWarning: none of its end-of-sequence tokens is a token.
    """
    ends = set(tokenizer.eos_token_ids or ())
    if ends and ends.isdisjoint(tokenizer.get_vocab().values()):
        shown = ", ".join(map(str, sorted(ends)))
        warnings.warn(
            f"the end-of-sequence token {shown} (eos_token_id) is none of the tokenizer's: texts "
            "end at max_tokens only",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
