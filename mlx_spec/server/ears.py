"""``Ears``: all of the server that listens to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_spec.events import Listener
from mlx_spec.server.entrance import Entrance
from mlx_spec.server.metrics import Meters
from mlx_spec.server.traffic import Traffic


@dataclass(frozen=True)
class Ears:
    """The listeners of one engine; made before it.

    Attributes:
        entrance: which requests were taken.
        traffic: what happens, for people.
        meters: what happened, for Prometheus.
    """

    entrance: Entrance = field(default_factory=Entrance)
    traffic: Traffic = field(default_factory=Traffic)
    meters: Meters = field(default_factory=Meters)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """As a generator takes them."""
        return self.entrance, self.traffic, self.meters
