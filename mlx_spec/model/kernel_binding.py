"""Binds the Metal kernels into a model of mlx-lm, and unbinds them again.

The model stays as it is: weights, module tree and mlx-lm's code are not touched. Each module in
question becomes an instance of a subclass of its own class that differs in ``__call__`` alone,
and ``unbind_kernels`` gives it its class back. (``sample``, which no model calls, is kept in the
class of the model itself, where the decoder looks for it.) Attention is a layer's own code, run
with our function where it calls ``scaled_dot_product_attention``; only calls that our slots
describe by lengths (``DenseKVCache``) go to the kernel, all others to mlx-lm's.

Which implementations are worth binding is ``kernel_choice``'s affair; one of them may be for
passes of some shapes only (``shaped_kernel``), and then others stay the model's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import base

import metal_kernels
from metal_kernels.attention_inputs import MAX_TOKENS, Lengths, supports_head_dim
from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.packed_rows import packed_queries
from mlx_spec.model import fused_layers
from mlx_spec.model.attention import attend, calling, calls
from mlx_spec.model.fused_layers import Call
from mlx_spec.model.shaped_kernel import ShapedKernel, by_shape, takes

OPERATIONS = {
    operation.name: operation
    for operation in (
        metal_kernels.rms_norm,
        metal_kernels.add_rms_norm,
        metal_kernels.rope,
        metal_kernels.norm_rope,
        metal_kernels.attention,
        metal_kernels.sample,
    )
}


class KernelBinding:
    """What was bound into a model; leaving its context unbinds it.

    Attributes:
        model: the model.
        bound: how many modules run each operation's kernel.
    """

    def __init__(self, model: Any, bound: Mapping[str, int]) -> None:
        self.model = model
        self.bound = dict(bound)

    def __enter__(self) -> KernelBinding:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Make the model as it was."""
        unbind_kernels(self.model)
        self.bound = {}


def bind_operations(model: Any, operations: Mapping[str, Call]) -> KernelBinding:
    """Let a model run these implementations; what was bound before is unbound.

    Args:
        model: any model of mlx-lm.
        operations: by name, as in ``metal_kernels``; what is not named stays the model's own.
    """
    unbind_kernels(model)
    bound: Counter[str] = Counter()
    modules = [module for _, module in model.named_modules()] if operations else []
    # Decided for all before any is changed: what a layer contains says whether it can be fused.
    calls = [_bound_call(module, operations) for module in modules]
    for module, (names, call) in zip(modules, calls, strict=True):
        changes: dict[str, Any] = {} if call is None else {"__call__": call}
        if module is model and "sample" in operations:
            changes["sample_operation"] = staticmethod(_sampling(operations["sample"]))
            names = [*names, "sample"]
        if changes:
            cls = type(module)
            changes["_own"] = cls
            module.__class__ = type(cls.__name__, (_Bound, cls), changes)
            bound.update(names)
    return KernelBinding(model, bound)


def unbind_kernels(model: Any) -> None:
    """Make a model as it was before any binding."""
    for _, module in model.named_modules():
        if isinstance(module, _Bound):
            module.__class__ = module._own


def bound_sample(model: Any) -> Call:
    """What chooses tokens from a model's logits: the implementation bound, else the reference."""
    operation: Call = getattr(type(model), "sample_operation", metal_kernels.sample.reference)
    return operation


class _Bound:
    """Marks the classes made here, whose subclasses others may make."""

    _own: type


def _bound_call(module: Any, operations: Mapping[str, Call]) -> tuple[list[str], Call | None]:
    """The operations that a module can run, and its ``__call__`` that does."""
    cls = type(module)
    original = cls.__call__
    if cls is nn.RMSNorm and "rms_norm" in operations:
        norm = operations["rms_norm"]
        return ["rms_norm"], by_shape(norm, fused_layers.bound_norm(norm), original)
    turns = fused_layers.rope_options(module)
    if turns is not None and "rope" in operations:
        rope = operations["rope"]
        call = fused_layers.bound_rope(rope, original, turns)
        return ["rope"], by_shape(rope, call, original, axis=-2)
    if "add_rms_norm" in operations and fused_layers.is_pre_norm_block(module):
        fused = operations["add_rms_norm"]
        return ["add_rms_norm"], by_shape(fused, fused_layers.fused_block(fused), original)
    attention: Call = attend
    names = []
    if "attention" in operations and _calls_attention(original):
        attention = SlotAttention(operations["attention"])
        names.append("attention")
    own = calling(original, attention) if names else original
    if "norm_rope" in operations and fused_layers.has_head_norms(module):
        turns = fused_layers.rope_options(module.rope) or {}
        fused = operations["norm_rope"]
        call = fused_layers.fused_attention(fused, attention, turns)
        return [*names, "norm_rope"], by_shape(fused, call, own)
    return (names, own) if names else ([], None)


def _sampling(operation: Call) -> Call:
    """What chooses tokens: the kernel for the shapes that it takes, its reference for others."""
    if not isinstance(operation, ShapedKernel):
        return operation

    def sample(logits: mx.array, *arguments: Any, **options: Any) -> Any:
        fits = operation.takes(*logits.shape[:2])
        call = operation if fits else metal_kernels.sample.reference
        return call(logits, *arguments, **options)

    return sample


def _calls_attention(call: Any) -> bool:
    """Whether a layer's code calls mlx-lm's attention function, or what may stand in its place."""
    return calls(call, base.scaled_dot_product_attention) or calls(call, attend)


class SlotAttention:
    """Stands where a layer calls ``scaled_dot_product_attention``.

    Calls over our slots whose mask is one that the slots made go to ``attention`` with lengths
    in the mask's place; the mask itself is then never computed.
    """

    def __init__(self, attention: Call) -> None:
        self._attention = attention

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """As mlx-lm's function of that name."""
        out: mx.array
        packed = packed_queries(queries, cache)
        if packed is not None:
            more: dict[str, Any] = {"cache": cache, "scale": scale, "mask": mask, "sinks": sinks}
            return packed.attend(self, queries, keys, values, **more)
        if self._fits(queries, keys, values, cache) and cache.span.made(mask):
            span = cache.span
            out = self._attention(
                queries,
                keys,
                values,
                Lengths(span.lengths, span.limit),
                scale=scale,
                window=span.size_of(mask),
                sinks=sinks,
            )
        else:
            out = attend(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
        return out

    def _fits(self, queries: mx.array, keys: Any, values: Any, cache: Any) -> bool:
        return (
            isinstance(cache, DenseKVCache)
            and isinstance(keys, mx.array)
            and queries.shape[2] <= MAX_TOKENS
            and supports_head_dim(queries.shape[3])
            and keys.shape == values.shape
            and queries.dtype == keys.dtype == values.dtype
            and takes(self._attention, queries.shape[0], queries.shape[2], keys.shape[2])
        )
