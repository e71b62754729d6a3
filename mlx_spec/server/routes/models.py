"""``/v1/models``: what is served, in words that OpenAI's and Anthropic's clients both read."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter

from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.refusals import refused
from mlx_spec.server.service import Service


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """The list, and one of it."""
    router = APIRouter(tags=["models"])
    served = service.served

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {
            "object": "list",
            "data": [_described(served)],
            "has_more": False,
            "first_id": served.name,
            "last_id": served.name,
        }

    @router.get("/v1/models/{name:path}", responses={404: {"description": "Not served here."}})
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        if name != served.name:
            raise refused(404, f"there is no model {name!r} here; {served.name!r} is served")
        return _described(served)

    return router


def _described(served: ServedModel) -> dict[str, Any]:
    made = datetime.fromtimestamp(served.created, timezone.utc)
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "mlx-spec",
        "max_model_len": served.context,
        "type": "model",
        "display_name": served.name,
        "created_at": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
