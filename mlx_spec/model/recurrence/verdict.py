"""``Recurrence``: what is known of a model's states before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_spec.model.recurrence.mixer import MixerCall
from mlx_spec.model.recurrence.probe import MixerProbe, probe
from mlx_spec.model.recurrence.trace import find_mixers, has_states


@dataclass(frozen=True)
class Recurrence:
    """How a model's states are kept right.

    Attributes:
        probes: what was found of each module that writes states, by its path in the model; empty
            where there are none.
    """

    probes: Mapping[str, MixerProbe] = field(default_factory=dict)

    @property
    def replays(self) -> bool:
        """Whether several tokens may be verified in one call of the model."""
        return all(found.replays for found in self.probes.values())

    @property
    def pads(self) -> bool:
        """Whether rows of different lengths may be read in one call."""
        return all(found.pads for found in self.probes.values())


def recurrence_of(model: Any) -> Recurrence:
    """Try one mixer of each class of a model; nothing is computed where there is no state.

    Raises:
        UnsupportedModel: weights that another thread described and did not compute.
    """
    if not has_states(model):
        return Recurrence()
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[Any, MixerProbe] = {}
    probes: dict[str, MixerProbe] = {}
    for call in find_mixers(model):
        kind = _kind(call)
        if kind not in found:
            found[kind] = probe(call)
        probes[paths[id(call.module)]] = found[kind]
    return Recurrence(probes)


def _kind(call: MixerCall) -> tuple[Any, ...]:
    """Mixers of one kind have the same code, parts and arguments."""
    given = tuple((name, type(value)) for name, value in call.values.items())
    return (call.code, tuple(call.module), given)
