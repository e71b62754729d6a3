"""``/v1/batches``: OpenAI's Batch API, over the store and the pipeline of ``mlx-spec batch``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.batch_api import BatchApi
from mlx_spec.server.batch_shelf import NewBatch
from mlx_spec.server.dialects import DIALECTS
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.pages import page
from mlx_spec.server.routes import files
from mlx_spec.server.service import Service


class KeptFor(BaseModel):
    """How long outputs are kept."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int


class BatchBody(BaseModel):
    """What is to be run."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: KeptFor | None = Field(None)


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """Files, and what is run over them; the thread that runs it lives with the server."""
    api = BatchApi(service, options)
    service.works.append(api)
    router = APIRouter(tags=["batches"], responses=files.STORE)
    router.include_router(files.routes(service, options, api))

    @router.post("/v1/batches")
    def create(body: BatchBody) -> dict[str, Any]:
        """Run an uploaded file's requests when there is room for them."""
        if body.endpoint not in DIALECTS:
            known = ", ".join(DIALECTS)
            raise InvalidRequest(f"endpoint is {body.endpoint[:60]!r}, expected one of {known}")
        kept = body.output_expires_after
        new = NewBatch(
            body.input_file_id,
            body.endpoint,
            body.completion_window,
            body.metadata,
            None if kept is None else kept.seconds,
        )
        with api.told() as shelf:
            return shelf.shown(shelf.create(new))

    @router.get("/v1/batches")
    def batches(
        after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> dict[str, Any]:
        """All batches, the latest first."""
        with api.told() as shelf:
            return page([shelf.shown(job) for job in shelf.all()], after, limit)

    @router.get("/v1/batches/{name}")
    def batch(name: str) -> dict[str, Any]:
        """One batch, as far as it is."""
        with api.told() as shelf:
            return shelf.shown(shelf.get(name))

    @router.post("/v1/batches/{name}/cancel")
    def cancel(name: str) -> dict[str, Any]:
        """End it early; what is done stays."""
        with api.told() as shelf:
            return shelf.shown(shelf.cancel(name))

    return router
