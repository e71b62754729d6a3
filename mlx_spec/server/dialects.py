"""Which API is spoken where: the paths under which requests come, and the dialect of each.

A new API is a line here. Imports no web framework: ``mlx-spec batch`` reads these requests, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlx_spec.server.protocol.chat_completions import ChatCompletions
from mlx_spec.server.protocol.completions import Completions
from mlx_spec.server.protocol.dialect import Dialect
from mlx_spec.server.protocol.messages import Messages
from mlx_spec.server.protocol.responses import Responses

DIALECTS: Mapping[str, Dialect] = {
    "/v1/chat/completions": ChatCompletions(),
    "/v1/completions": Completions(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
}
"""Path -> dialect; the first one's format is that of errors where no dialect is spoken."""


def dialect_of(path: str) -> Dialect:
    """Whose errors the callers of a path read."""
    for prefix, dialect in DIALECTS.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return dialect
    return next(iter(DIALECTS.values()))
