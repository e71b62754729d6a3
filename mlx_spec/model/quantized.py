"""Quantized weights on the CPU, where MLX multiplies them only slowly: made plain on request."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.nn as nn

from mlx_spec.model.pace import on_cpu


def quantized_bits(model: Any) -> int | None:
    """Bits of a model's quantized weights (the fewest), or None if none are quantized."""
    bits = [module.bits for _, module in model.named_modules() if _is_quantized(module)]
    return min(bits, default=None)


def dequantize(model: Any) -> Any:
    """Put plain layers in place of the quantized ones; the weights have the values that they had.

    The scales' type is that of the new weights: cast them first.

    Returns:
        The model, changed in place. Layers that mlx-lm cannot make plain stay quantized.
    """
    from mlx_lm.utils import dequantize_model

    return dequantize_model(model)


def _is_quantized(module: Any) -> bool:
    return isinstance(module, nn.Module) and "scales" in module and hasattr(module, "bits")


def warn_if_quantized(model: Any, stacklevel: int = 2) -> None:
    """On the CPU, say of quantized weights what they cost and how to do without.

    Warns:
        RuntimeWarning: the model has quantized weights and runs on the CPU.
    """
    bits = quantized_bits(model) if on_cpu() else None
    if bits is not None:
        warnings.warn(quantized_advice(bits), RuntimeWarning, stacklevel=stacklevel + 1)


def quantized_advice(bits: int) -> str:
    """What quantized weights cost on the CPU, and how to do without."""
    return (
        f"{bits}-bit weights read prompts some ten times slower than float32 on the CPU; "
        'load(..., dtype="float32") or --dtype float32 makes them plain (the same values, '
        f"about {32 // bits} times the memory)"
    )
