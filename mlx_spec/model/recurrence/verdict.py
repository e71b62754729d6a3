"""``Recurrence``: what is known of a model's states before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.recurrence.mixer import MixerCall
from mlx_spec.model.recurrence.probe import MixerProbe, probe
from mlx_spec.model.recurrence.trace import find_mixers, states_of


@dataclass(frozen=True)
class Recurrence:
    """How a model's states are kept right.

    Attributes:
        replays: several tokens may be verified in one call of the model.
        pads: rows of different lengths may be read in one call.
        zeros: a row that begins may read zeros beside others that go on.
        tried: False where its weights cannot be computed in this thread, so that nothing is known.
        probes: what was found of each module that writes states, by its path in the model; empty
            where there is none.
    """

    replays: bool = True
    pads: bool = True
    zeros: bool = True
    tried: bool = True
    probes: Mapping[str, MixerProbe] = field(default_factory=dict)


UNKNOWN = Recurrence(replays=False, pads=False, zeros=False)


def recurrence_of(model: Any) -> Recurrence:
    """Try one mixer of each class of a model; nothing is computed where there is no state."""
    if not states_of(model):
        return Recurrence()
    try:
        calls = find_mixers(model)
    except Exception:  # whatever the code of a model raises
        return UNKNOWN
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[Any, MixerProbe] = {}
    try:
        for call in calls:
            if _kind(call) not in found:
                found[_kind(call)] = probe(call)
    except UnsupportedModel:
        return replace(UNKNOWN, tried=False)
    except Exception:  # whatever the code of a model raises
        return UNKNOWN
    probes = {paths[id(call.module)]: found[_kind(call)] for call in calls}
    if not probes:
        return UNKNOWN
    return Recurrence(
        all(one.way is not None for one in probes.values()),
        all(one.pads for one in probes.values()),
        all(one.zeros for one in probes.values()),
        probes=probes,
    )


def _kind(call: MixerCall) -> tuple[Any, ...]:
    """Mixers of one kind have the same code, parts and arguments."""
    given = tuple((name, type(value)) for name, value in call.values.items())
    return (call.code, *call.module, *given)
