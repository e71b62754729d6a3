"""Lets the mixers of a model note what they are called with, and lets them be again.

A mixer becomes an instance of a subclass of its own class, whose call over our states is noted
where the pass may be cut (``StateCache.noting``). All other calls, mlx-lm's own caches among them,
are its own class's. Arithmetic, weights and the tree of modules are untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_spec.cache.layout import states_in
from mlx_spec.cache.state import StateCache
from mlx_spec.model.recurrence.mixer import (
    Call,
    MixerCall,
    Noted,
    Notes,
    States,
    argument_names,
    own_class,
)
from mlx_spec.model.recurrence.probe import MixerProbe
from mlx_spec.model.recurrence.replay import Kept, Way, run_again
from mlx_spec.model.recurrence.trace import call_of


def bind_recurrence(model: Any, probes: Mapping[str, MixerProbe]) -> None:
    """Let mixers note from now on; twice is as once.

    Args:
        model: any model of mlx-lm.
        probes: what was found of each mixer, by its path in the model.
    """
    modules = dict(model.named_modules()) if probes else {}
    made: dict[tuple[type, MixerProbe], type] = {}
    for path, found in probes.items():
        now = type(modules[path])
        if issubclass(now, Noted) and "_beneath" not in vars(now):
            continue  # somebody made a subclass of ours
        cls = own_class(now)
        if (cls, found) not in made:
            body = {"__call__": _noting(cls, found), "_beneath": cls}
            made[cls, found] = type(cls.__name__, (Noted, cls), body)
        modules[path].__class__ = made[cls, found]


def unbind_recurrence(model: Any) -> None:
    """Make a model's mixers as they were."""
    for _, module in model.named_modules():
        if isinstance(module, Noted):
            module.__class__ = own_class(type(module))


def _noting(cls: type, found: MixerProbe) -> Call:
    """The call of a mixer's subclass."""
    own: Call = cls.__call__

    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        values = dict(zip(argument_names(own), args, strict=False)) | kwargs
        for name, value in values.items():
            for cache in states_in(value):
                if isinstance(cache, StateCache) and cache.noting and found.way is not None:
                    return _noted(call_of(own, module, values, name), value, cache, found.way)
        return own(module, *args, **kwargs)

    return call


def _noted(call: MixerCall, argument: Any, cache: StateCache, way: Way) -> Any:
    """Run a call, and tell the cache how its states come about again."""
    notes, span = Notes(call), cache.span
    output = call.run(call.clone(notes.take), argument)

    def replay(before: States, counts: mx.array) -> States:
        kept = Kept(counts, span.within(counts))
        return run_again(call, notes, before, kept, way)

    cache.note(replay)
    return output
