"""What clients look for and is not here: said in words, not with a bare 404."""

from __future__ import annotations

from fastapi import APIRouter

from mlx_spec.server.options import ServerOptions
from mlx_spec.server.refusals import refused
from mlx_spec.server.service import Service


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """Embeddings."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/embeddings", responses={501: {"description": "There are none."}})
    async def embeddings() -> None:
        """Not here: this server generates text."""
        raise refused(
            501,
            "this server generates text and makes no embeddings; an embedding model needs a server "
            "of its own, such as mlx-embeddings or llama.cpp's --embedding",
        )

    return router
