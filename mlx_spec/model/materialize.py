"""``materialize(model)``: compute every array that a model holds, in the thread that calls it.

MLX computes an array only when it is needed, and on the stream of the thread that described it: an
array left for later cannot be computed by another thread. ``mx.eval(model.parameters())`` leaves
some, since what a module keeps under a private name (``_freqs`` of scaled rotations) is none of
its parameters.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.device_stream import note_thread

# Bytes computed between two moves of the bar; seconds before it is shown.
_GROUP, _PATIENCE = 2**28, 2.0
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, str, bytes)


def materialize(model: Any, *, parameters: bool = True, title: str = "") -> None:
    """Compute what a model holds: its parameters, and the arrays that are none.

    Call it in the thread that loaded or built the model, before another one runs it. What is
    computed already costs nothing.

    Args:
        model: any module of MLX, or an object that holds some.
        parameters: False leaves the parameters as they are (weights not read from disk yet).
        title: on a terminal, a bar of this name where it takes more than a moment.

    Raises:
        UnsupportedModel: it holds arrays that another thread described and did not compute.
    """
    left: set[int] = set()
    if not parameters:
        left = {id(array) for _, array in tree_flatten(model.parameters())}
    note_thread()
    try:
        _compute([array for array in held_arrays(model) if id(array) not in left], title)
    except RuntimeError as error:
        if "in current thread" not in str(error):
            raise
        raise UnsupportedModel(
            "[materialize] the model holds arrays that another thread described and did not "
            "compute, and no other can: call mx.eval(model.parameters()) in that thread, or load "
            "it without lazy=True"
        ) from error


def _compute(arrays: list[mx.array], title: str) -> None:
    """All of them, so much at a time that a bar moves."""
    total = sum(array.nbytes for array in arrays)
    if not title or total <= _GROUP:
        mx.eval(arrays)
        return
    # The hub's own bar: what switches off that of its downloads switches off this one.
    from huggingface_hub.utils.tqdm import tqdm

    bar_of: Any = tqdm
    options = {"unit": "B", "unit_scale": True, "leave": False, "delay": _PATIENCE}
    with bar_of(total=total, desc=title, disable=None, **options) as bar:
        group: list[mx.array] = []
        size = 0
        for array in arrays:
            group.append(array)
            size += array.nbytes
            if size >= _GROUP:
                mx.eval(group)
                bar.update(size)
                group, size = [], 0
        mx.eval(group)
        bar.update(size)


def held_arrays(holder: Any) -> list[mx.array]:
    """Every array that an object reaches through its attributes and containers, each once."""
    seen: set[int] = set()
    arrays: list[mx.array] = []
    waiting = [holder]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, mx.array):
            arrays.append(item)
        else:
            waiting.extend(_contents(item))
    return arrays


def _contents(item: Any) -> Iterator[Any]:
    """What an object holds; modules are dicts that may have attributes as well."""
    if isinstance(item, _OPAQUE):
        return
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from item
    attributes = getattr(item, "__dict__", None)
    if isinstance(attributes, dict):
        yield from attributes.values()
