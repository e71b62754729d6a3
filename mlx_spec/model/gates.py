"""Gates of wide passes, on a CPU: exponentials made of operations over many numbers at once.

MLX's CPU build takes exponentials one by one on x86, 12 ns each, in one thread: of a prompt's pass
the gates ``silu(gate) * x`` were a quarter. Where a layer's code calls mlx-lm's function for that,
passes of ours over ``FEWEST`` tokens or more compute it by ``metal_kernels.log_sum.powers``::

    silu(g) = g / (1 + e)         g >= 0, e = exp(-|g|) <= 1: nothing overflows
            = g e / (1 + e)       g < 0

They are as near to what they should be as MLX's own are (6e-7 and 5e-7 at most): products over
another number of tokens differ by more. Fewer tokens, other types and whatever is no pass of ours
are mlx-lm's; so is all on MLX's own BLAS, by which rows of a batch agree with single ones bit for
bit.
"""

from __future__ import annotations

import math
import platform
import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
from mlx_lm.models.activations import swiglu

from metal_kernels.log_sum import powers
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.rewired import with_global
from mlx_spec.platform import ensure_blas

FEWEST = 16  # tokens: with fewer, some thirty small operations take as long as what they replace
_NAME = "swiglu"
_IN_PASS: ContextVar[bool] = ContextVar("gates", default=False)


class _Gating:
    """Marks the classes made here."""

    _unbound: type  # the class that the module had before


def quicken_gates(model: Any) -> None:
    """Let a model's gates be computed so in passes from now on; twice is as once.

    Args:
        model: any model of mlx-lm.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (x86 and on_cpu() and ensure_blas().fast):
        return
    made: dict[type, type] = {}
    for _, module in model.named_modules():
        own = type(module)
        if own not in made:
            made[own] = _gating(own)
        if made[own] is not own:
            module.__class__ = made[own]


@contextmanager
def quick_gates() -> Iterator[None]:
    """While a pass is described."""
    before = _IN_PASS.set(True)
    try:
        yield
    finally:
        _IN_PASS.reset(before)


def _gating(own: type) -> type:
    """The class whose code calls ``gated``; itself where none calls mlx-lm's function."""
    if issubclass(own, _Gating):
        return own
    code = {name: getattr(own, name) for cls in own.__mro__ for name in vars(cls)}
    bound = {name: with_global(call, _NAME, gated) for name, call in code.items() if _calls(call)}
    if not bound:
        return own
    # Under another name, by which what was timed of passes is kept.
    names = {"__module__": own.__module__, "__qualname__": f"{own.__qualname__}, quick gates"}
    return type(own.__name__, (_Gating, own), {**names, "_unbound": own, **bound})


def _calls(call: Any) -> bool:
    """Whether it is a function that finds mlx-lm's in its module."""
    return (
        isinstance(call, types.FunctionType)
        and _NAME in call.__code__.co_names
        and call.__globals__.get(_NAME) is swiglu
    )


def gated(gate: mx.array, x: mx.array) -> mx.array:
    """``silu(gate) * x``, of [..., D] both, as mlx-lm's function."""
    tokens = gate.size // max(1, gate.shape[-1])
    if not _IN_PASS.get() or tokens < FEWEST or gate.dtype != mx.float32:
        own: mx.array = swiglu(gate, x)
        return own
    return silu(gate) * x


def silu(gate: mx.array) -> mx.array:
    """``gate * sigmoid(gate)`` of float32; NaN stays NaN."""
    small = powers(mx.maximum(mx.abs(gate) * -math.log2(math.e), -125.0))  # exp(-|gate|)
    return (mx.maximum(gate, 0.0) + mx.minimum(gate, 0.0) * small) / (small + 1.0)
