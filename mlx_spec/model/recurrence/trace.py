"""Finds the mixers of a model: the modules that are called with a state and pass it to nobody.

One pass over the model's own caches is described, and dropped. While it is, every module is an
instance of a subclass of its own class that says with what it was called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layout import members_of, own_caches, states_in
from mlx_spec.model.recurrence.mixer import Call, MixerCall, argument_names, own_class

# Of the traced pass, and so of all that is tried with what it shows; no two numbers alike, since
# axes of a call are told by them.
ROWS, WIDTH = 3, 5


def states_of(model: Any) -> list[Any]:
    """All that a model keeps, of its own kind."""
    return [state for cache in own_caches(model) for state in states_in(cache)]


def find_mixers(model: Any) -> list[MixerCall]:
    """A call of each mixer, in their order, with random numbers for what a pass computes.

    Returns:
        Nothing if the model keeps no states, or none of its modules is called with some of them.
    """
    caches = own_caches(model)
    states = [state for cache in caches for state in states_in(cache)]
    for state in states:
        state.lengths = mx.full((ROWS,), WIDTH, mx.int32)
    if not states:
        return []
    spy = _Spy()
    with spy.watching(model):
        model(mx.zeros((ROWS, WIDTH), mx.int32), cache=caches)
    return spy.calls if spy.seen == set(map(id, states)) else []


class _Spy:
    """Hears every call of a module.

    Attributes:
        calls: those of mixers.
        seen: the states that these were called with.
    """

    def __init__(self) -> None:
        self.calls: list[MixerCall] = []
        self.seen: set[int] = set()
        self._passed: list[set[int]] = []  # by call in progress: states that it handed on

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Listen while the context lasts."""
        modules = [module for _, module in model.named_modules()]
        own = [type(module) for module in modules]
        made = {cls: type(cls.__name__, (cls,), {"__call__": self._heard(cls)}) for cls in set(own)}
        try:
            for module, cls in zip(modules, own, strict=True):
                module.__class__ = made[cls]
            yield
        finally:
            for module, cls in zip(modules, own, strict=True):
                module.__class__ = cls

    def _heard(self, cls: type) -> Call:
        code: Call = own_class(cls).__call__

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            values = dict(zip(argument_names(code), args, strict=False)) | kwargs
            held = [(name, cache) for name in values for cache in states_in(values[name])]
            if not held:
                return code(module, *args, **kwargs)
            for passed in self._passed:
                passed.update(id(cache) for _, cache in held)
            self._passed.append(set())
            try:
                return code(module, *args, **kwargs)
            finally:
                name, cache = held[0]
                if id(cache) not in self._passed.pop():
                    self.seen.add(id(cache))
                    self.calls.append(call_of(code, module, _random(values), name))

        return call


def call_of(code: Call, module: Any, values: dict[str, Any], name: str) -> MixerCall:
    """A call, apart from the cache that it was made with."""
    rest = dict(values)
    cache = rest.pop(name)
    offsets = tuple(None if states_in(member) else member.offset for member in members_of(cache))
    return MixerCall(code, module, rest, name, len(states_in(cache)[0].cache), offsets or None)


def _random(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments with random numbers for what a pass computes."""
    keys = mx.random.split(mx.random.key(0), len(values))  # the user's own stream is let alone
    return {
        name: _random_like(value, key)
        for (name, value), key in zip(values.items(), keys, strict=True)
    }


def _random_like(value: Any, key: mx.array) -> Any:
    if not isinstance(value, mx.array) or value.dtype == mx.bool_:
        return value
    if mx.issubdtype(value.dtype, mx.floating):
        return mx.random.normal(value.shape, key=key).astype(value.dtype)
    if value.ndim < 2:  # positions
        return value
    return mx.random.randint(0, 8, value.shape, key=key).astype(value.dtype)
