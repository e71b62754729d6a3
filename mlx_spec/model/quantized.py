"""Weights quantized on request as they are loaded; and made plain on request, as for the CPU,
where MLX multiplies quantized ones only slowly."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.nn as nn

from mlx_spec.errors import InvalidRequest
from mlx_spec.load_config import WeightQuantization
from mlx_spec.model.pace import on_cpu


def quantized_bits(model: Any) -> int | None:
    """Bits of a model's quantized weights (the fewest), or None if none are quantized."""
    bits = [module.bits for _, module in model.named_modules() if _is_quantized(module)]
    return min(bits, default=None)


def quantize(model: Any, wanted: WeightQuantization) -> None:
    """Quantize a model's plain weights, in place, as ``mlx_lm.convert --quantize`` would.

    Which layers, and any that get bits of their own, is the architecture's say
    (``quant_predicate``); what is quantized already, and what groups do not divide, stays as it is.

    Raises:
        InvalidRequest: there is nothing in it to quantize.
    """
    choose = getattr(model, "quant_predicate", None)
    found = 0

    def predicate(path: str, module: Any) -> Any:
        nonlocal found
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % wanted.group_size:
            return False
        choice = True if choose is None else choose(path, module)
        found += bool(choice)
        return choice

    nn.quantize(model, wanted.group_size, wanted.bits, mode=wanted.mode, class_predicate=predicate)
    if not found:
        have = quantized_bits(model)
        if have:
            raise InvalidRequest(
                f"its weights are quantized already, to {have} bits: load it without quantize "
                "(--quantize)"
            )
        groups = f"quantize to groups of {wanted.group_size}"
        raise InvalidRequest(f"{groups}: no layer's width is a multiple")


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
