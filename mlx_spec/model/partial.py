"""A model that runs some of its layers only: a shallow copy over the same weights and caches.

What is skipped stands in its place and passes by what it is given, so that every layer keeps its
number and its cache, whatever its model's code makes of them (which window, which mask)::

    layers of the model    0 1 2 3 4 5     caches  a b c d e f
    of the partial copy    0 1 . 3 . .             a b . d . .    . is Skipped: x -> x

The modules on the way to the layers are copied, one level deep; all others, and all weights, are
the model's own. Whether a model's code can be called so is told by numbers, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import model_name, plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.rows import Rows
from mlx_spec.model.runner import ModelRunner

_TOKENS = 4  # of each of the rows that a copy is tried with
_NEAR = 1e-3  # of the logits' range; equal where the device computes equal things alike

Change = Callable[[int, Any], Any]


class Skipped:
    """In a layer's place: what it is given comes out; what else is asked of it, the layer says."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, x: mx.array, *others: Any, **more: Any) -> mx.array:
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def layers_of(model: Any) -> list[Any]:
    """The layers of a model, in order.

    Raises:
        UnsupportedModel: it does not say which they are.
    """
    layers = getattr(model, "layers", None) if isinstance(model, nn.Module) else None
    if not isinstance(layers, (list, tuple)) or not layers:
        raise UnsupportedModel(f"{_of(model)} has no list of `layers`, so that none can be skipped")
    return list(layers)


def partial(model: Any, kept: Collection[int]) -> Any:
    """A copy of ``model`` that runs the layers ``kept`` (numbers from 0) and skips the others.

    Raises:
        UnsupportedModel: as ``layers_of``, or they are not where its modules keep theirs.
    """
    return with_layers(model, lambda place, layer: layer if place in kept else Skipped(layer))


def with_layers(model: Any, change: Change) -> Any:
    """A copy of ``model`` with ``change(number, layer)`` in each layer's place."""
    own = {id(layer): place for place, layer in enumerate(layers_of(model))}
    copy = _copied(model, own, change, {})
    if copy is model:
        raise UnsupportedModel(
            f"the `layers` of {_of(model)} are not in a list of its modules, so that none can be "
            "skipped"
        )
    return copy


def _copied(item: Any, own: dict[int, int], change: Change, known: dict[int, Any]) -> Any:
    """``item`` with other layers in it; itself where there are none."""
    if not isinstance(item, (dict, list, tuple)):
        return item
    if id(item) not in known:
        known[id(item)] = item  # whoever refers to it from within is not copied
        values = list(item.values() if isinstance(item, dict) else item)
        inner = [
            change(own[id(value)], value)
            if id(value) in own
            else _copied(value, own, change, known)
            for value in values
        ]
        if any(
            id(value) in own or new is not value for new, value in zip(inner, values, strict=True)
        ):
            named = isinstance(item, dict)
            known[id(item)] = _like(item, dict(zip(item, inner, strict=True))) if named else inner
    return known[id(item)]


def _like(item: dict[str, Any], inner: dict[str, Any]) -> Any:
    """A module, or a plain dictionary, of the same class that holds something else."""
    if not isinstance(item, nn.Module):
        return inner
    copy: Any = type(item).__new__(type(item))
    vars(copy).update(vars(item))
    dict.update(copy, inner)
    return copy


def check_partial(runner: ModelRunner) -> None:
    """See that layers of a model can be skipped: by the numbers that come out.

    Raises:
        UnsupportedModel: they cannot; with what is in the way.
    """
    model, count = runner.model, len(layers_of(runner.model))
    if count < 2:
        raise UnsupportedModel(f"{_of(model)} has {count} layer, so that none can be skipped")
    whole = _logits(runner, model)
    again = _logits(runner, partial(model, range(count)))
    spread = whole.max() - whole.min()
    if not (mx.abs(whole - again).max() <= _NEAR * spread).item():
        raise UnsupportedModel(
            f"a copy of {_of(model)} with all of its {count} layers says something else, so that "
            "its code keeps more than its modules show"
        )
    try:
        part = _logits(runner, partial(model, range(0, count, 2)))
    except Exception as error:  # whatever the code of a model raises
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UnsupportedModel(
            f"the code of {_of(model)} wants more of a layer than what it is given, so that none "
            f"can be skipped ({words})"
        ) from error
    if part.shape != whole.shape or mx.array_equal(part, whole).item():
        raise UnsupportedModel(f"the code of {_of(model)} does not call the `layers` that it lists")


def _logits(runner: ModelRunner, model: Any) -> mx.array:
    """Of two rows that are read, then of one token more, over caches of their own."""
    pool = KVCachePool(plan(runner.model, runner.options), 2)
    pool.acquire(2)
    pool.reserve(_TOKENS + 1)
    passes = make_pass(runner.support.form, model, pool, grouped=runner.support.grouped_masks)
    tokens = (mx.arange(2 * _TOKENS, dtype=mx.int32).reshape(2, -1) * 7) % runner.vocabulary
    passes.forward(Rows(tokens, mx.zeros(2, mx.int32), _TOKENS, uniform=True))
    last = Rows(tokens[:, :1], mx.full((2,), _TOKENS, mx.int32), _TOKENS + 1, uniform=True)
    logits = passes.forward(last).astype(mx.float32)
    mx.eval(logits)
    return logits


def _of(model: Any) -> str:
    return f"this {model_name(model)!r} model"
