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
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.cache.layout import model_name, plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.rows import Rows
from mlx_spec.model.runner import ModelRunner
from mlx_spec.weak_memo import WeakMemo

_TOKENS = 4  # of each of the rows that a copy is tried with
_ROWS = 5  # no layer gives as many things, so that rows are not taken for them
_NEAR = 1e-3  # of the logits' range; equal where the device computes equal things alike

Change = Callable[[int, Any], Any]


class Skipped:
    """In a layer's place: what it is given comes out; what else is asked of it, the layer says.

    Args:
        layer: the one that is skipped.
        outputs: how many things it gives; nothing is given for those after the first.
    """

    def __init__(self, layer: Any, outputs: int = 1) -> None:
        self._layer, self._rest = layer, [None] * (outputs - 1)

    def __call__(self, *given: Any, **named: Any) -> Any:
        x = given[0] if given else next(iter(named.values()))
        return (x, *self._rest) if self._rest else x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class _Counted(Skipped):
    """A layer that runs, and how many things it gives."""

    outputs = 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        out = self._layer(*given, **named)
        self.outputs = len(out) if isinstance(out, (tuple, list)) else 1
        return out


@dataclass(frozen=True)
class Skipping:
    """How layers of a model can be skipped.

    Attributes:
        outputs: things that each layer gives.
        needed: numbers of the layers that can not be, since others read what they give.
    """

    outputs: tuple[int, ...]
    needed: frozenset[int] = frozenset()

    def partial(self, model: Any, kept: Collection[int]) -> Any:
        """A copy of ``model`` that runs the layers ``kept`` (from 0), and those that are needed."""
        runs = self.needed.union(kept)

        def change(place: int, layer: Any) -> Any:
            return layer if place in runs else Skipped(layer, self.outputs[place])

        return with_layers(model, change)


def layers_of(model: Any) -> list[Any]:
    """The layers of a model, in order.

    Raises:
        UnsupportedModel: it does not say which they are.
    """
    layers = getattr(model, "layers", None) if isinstance(model, nn.Module) else None
    if not isinstance(layers, (list, tuple)) or not layers:
        raise UnsupportedModel(f"{_of(model)} has no list of `layers`, so that none can be skipped")
    return list(layers)


def with_layers(model: Any, change: Change) -> Any:
    """A copy of ``model`` with ``change(number, layer)`` in each layer's place.

    Raises:
        UnsupportedModel: as ``layers_of``, or they are not where its modules keep theirs.
    """
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
        pairs = zip(inner, values, strict=True)
        if any(id(value) in own or new is not value for new, value in pairs):
            known[id(item)] = _like(item, inner) if isinstance(item, dict) else inner
    return known[id(item)]


def _like(item: dict[str, Any], values: list[Any]) -> Any:
    """A module, or a plain dictionary, of the same class that holds something else."""
    inner = dict(zip(item, values, strict=True))
    if not isinstance(item, nn.Module):
        return inner
    own: Any = type(item)
    copy = own.__new__(own)
    vars(copy).update(vars(item))
    dict.update(copy, inner)
    return copy


_KNOWN = WeakMemo["Skipping"]()


def skipping_of(runner: ModelRunner) -> Skipping:
    """How layers of a model can be skipped, by the numbers that come out; looked at once.

    Raises:
        UnsupportedModel: they cannot; with what is in the way.
    """
    known = _KNOWN.get(runner.model)
    return _KNOWN.keep(_look(runner), runner.model) if known is None else known


def _look(runner: ModelRunner) -> Skipping:
    model, count = runner.model, len(layers_of(runner.model))
    if count < 2:
        raise UnsupportedModel(f"{_of(model)} has {count} layer, so that none can be skipped")
    noted: dict[int, _Counted] = {}
    copy = with_layers(model, lambda place, layer: noted.setdefault(place, _Counted(layer)))
    whole, again = _logits(runner, model), _logits(runner, copy)
    mx.eval(whole, again)
    if not (mx.abs(whole - again).max() <= _NEAR * (whole.max() - whole.min())).item():
        raise UnsupportedModel(
            f"a copy of {_of(model)} with all of its {count} layers says something else, so that "
            "its code keeps more than its modules show"
        )
    if len(noted) < count or not all(layer.outputs for layer in noted.values()):
        raise UnsupportedModel(f"the code of {_of(model)} does not call the `layers` that it lists")
    skipping = Skipping(tuple(noted[place].outputs for place in range(count)))
    if max(skipping.outputs) > 1:  # others may read what is not there
        skipping = Skipping(skipping.outputs, _needed(runner, skipping))
    if problem := why_not(runner, skipping, skipping.needed.union(range(0, count, 2))):
        raise UnsupportedModel(
            f"the code of {_of(model)} wants more of its layers than what they are given, so that "
            f"they cannot be skipped ({problem})"
        )
    return skipping


def _needed(runner: ModelRunner, skipping: Skipping) -> frozenset[int]:
    """The layers without which a model's code does not run, each tried alone."""
    count = len(skipping.outputs)
    everyone = frozenset(range(count))
    return frozenset(
        place for place in range(count) if why_not(runner, skipping, everyone - {place})
    )


def why_not(runner: ModelRunner, skipping: Skipping, kept: Collection[int]) -> str:
    """Why a model does not run with the layers ``kept`` alone; empty where it does."""
    try:
        logits = _logits(runner, skipping.partial(runner.model, kept))
    except Exception as error:  # whatever the code of a model raises
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    fits = logits.shape == (_ROWS, 1, runner.vocabulary)
    return "" if fits else f"logits of shape {logits.shape} come out"


def _logits(runner: ModelRunner, model: Any) -> mx.array:
    """Of some rows that are read, then of one token more, over caches of their own; lazily."""
    pool = KVCachePool(plan(runner.model, runner.options), _ROWS)
    pool.acquire(_ROWS)
    pool.reserve(_TOKENS + 1)
    passes = make_pass(runner.support.form, model, pool, grouped=runner.support.grouped_masks)
    tokens = mx.arange(_ROWS * _TOKENS, dtype=mx.int32).reshape(_ROWS, -1) % runner.vocabulary
    passes.forward(Rows(tokens, mx.zeros(_ROWS, mx.int32), _TOKENS, uniform=True))
    starts = mx.full((_ROWS,), _TOKENS, mx.int32)
    logits, *_ = passes.forward(Rows(tokens[:, :1], starts, _TOKENS + 1, uniform=True))
    return logits.astype(mx.float32)


def _of(model: Any) -> str:
    return f"this {model_name(model)!r} model"
