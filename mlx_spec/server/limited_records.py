"""``LimitedRecords``: requests of a batch, within the limits of the server that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mlx_spec.server.api_records import ApiRecords
from mlx_spec.server.protocol.asked import Asked


def _same(asked: Asked) -> Asked:
    return asked


@dataclass(frozen=True)
class LimitedRecords(ApiRecords):
    """Requests as a server takes them.

    Attributes:
        limit: the server's checks; raises InvalidRequest.
    """

    kind: ClassVar[str] = "api"
    limit: Callable[[Asked], Asked] = _same

    def limited(self, asked: Asked) -> Asked:
        return self.limit(asked)
