"""Rotations by angles that are made once a pass, on a CPU.

MLX's CPU build takes ``mx.fast.rope`` apart into some thirty operations, most of which make
the same sines and cosines for the queries and the keys of every layer: nearly half of those of a
pass, each of which costs more than the few numbers it is about. Here modules that rotate look their
angles up in a table of the pass, and what is left is a product with each of two arrays::

    x       a b | rest       halves of the dims that rotate; or neighbours
    turned  b a |
    out     x * (cos cos) + turned * (-sin sin) | rest

The table is what the module's own code makes of ones and zeros, so that each output is rounded as
its own, to the last bit, whatever its kind of frequencies. Outside our passes, and where Metal or
CUDA turn with a kernel of their own, a module's own code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from mlx_spec.model.fused_layers import rope_options
from mlx_spec.model.pace import on_cpu

Call: TypeAlias = Callable[..., Any]
_Table: TypeAlias = tuple[mx.array, mx.array]

# Of the pass that this thread describes: tables by what they depend on, and whose offset it was.
_TABLES: ContextVar[dict[Hashable, tuple[_Table, Any]] | None] = ContextVar("tables", default=None)


class _Sharing:
    """Marks the classes made here."""

    _unbound: type  # the class that the module had before


def share_angles(model: Any) -> None:
    """Let what rotates in a model share its angles in passes from now on; twice is as once.

    Args:
        model: any model of mlx-lm, its arrays computed.
    """
    if not on_cpu():
        return
    made: dict[Hashable, type] = {}
    for _, module in model.named_modules():
        options = None if isinstance(module, _Sharing) else rope_options(module)
        if options is None:
            continue
        own = type(module)
        # Each layer has frequencies of its own, equal to the others'.
        kind = tuple(
            np.asarray(value).tobytes() if isinstance(value, mx.array) else value
            for value in (own, *options.values())
        )
        if kind not in made:
            call = _sharing(own.__call__, kind, options["dims"], options["traditional"])
            body = {"__module__": own.__module__, "__call__": call, "_unbound": own}
            made[kind] = type(own.__name__, (_Sharing, own), body)
        module.__class__ = made[kind]


@contextmanager
def shared_angles() -> Iterator[None]:
    """While a pass is described: what rotates in it shares its angles."""
    before = _TABLES.set({})
    try:
        yield
    finally:
        _TABLES.reset(before)


def _sharing(own: Call, kind: Hashable, dims: int, traditional: bool) -> Call:
    """The call of a module's subclass."""

    def call(module: Any, x: mx.array, offset: Any = 0, *args: Any, **more: Any) -> mx.array:
        tables = _TABLES.get()
        if tables is None or x.ndim != 4 or args or more:
            rotated: mx.array = own(module, x, offset, *args, **more)
            return rotated
        rows = offset.size if isinstance(offset, mx.array) else 1
        key = (kind, x.shape[2], x.dtype, id(offset) if isinstance(offset, mx.array) else offset)
        if key not in tables:
            units = _units(dims, traditional, (rows, 1, x.shape[2], dims), x.dtype)
            # With the offset, which would leave its identity to another one.
            tables[key] = _spread(own(module, units, offset), traditional), offset
        return _rotated(x, tables[key][0], dims, traditional)

    return call


def _units(dims: int, traditional: bool, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """What is turned into cosine and sine of each angle: 1 and 0."""
    pair = mx.array([1, 0], dtype)
    row = mx.tile(pair, dims // 2) if traditional else mx.repeat(pair, dims // 2)
    return mx.broadcast_to(row, shape)


def _spread(turned: mx.array, traditional: bool) -> _Table:
    """From cosines and sines as they stand in [rows, 1, N, dims] what x and its other half are
    multiplied with."""
    axis = -1 if traditional else -2
    shape = (-1, 2) if traditional else (2, -1)
    cosine, sine = mx.split(turned.reshape(*turned.shape[:3], *shape), 2, axis=axis)
    both = mx.concatenate([cosine, cosine], axis=axis), mx.concatenate([-sine, sine], axis=axis)
    return both[0].reshape(turned.shape), both[1].reshape(turned.shape)


def _rotated(x: mx.array, table: _Table, dims: int, traditional: bool) -> mx.array:
    """[B, H, N, D] turned by a table."""
    head = x if dims == x.shape[-1] else x[..., :dims]
    half = dims // 2
    if traditional:
        turned = head.reshape(*head.shape[:3], half, 2)[..., ::-1].reshape(head.shape)
    else:
        turned = mx.concatenate([head[..., half:], head[..., :half]], axis=-1)
    out = head * table[0] + turned * table[1]
    return out if head is x else mx.concatenate([out, x[..., dims:]], axis=-1)
