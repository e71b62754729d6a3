"""``/health``, ``/ready``, ``/metrics`` and ``/v1/stats``: how the server is."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mlx_spec.server.options import ServerOptions
from mlx_spec.server.service import Service
from mlx_spec.server.stats import statistics

_UNWELL: dict[int | str, dict[str, Any]] = {503: {"description": "It is not."}}


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """What supervisors, proxies and people look at."""
    router = APIRouter(tags=["server"])

    @router.get("/health", responses=_UNWELL)
    async def health() -> JSONResponse:
        """Whether the engine lives."""
        status = "ok" if service.healthy else "unavailable"
        return JSONResponse({"status": status}, 200 if service.healthy else 503)

    @router.get("/ready", responses=_UNWELL)
    async def ready() -> JSONResponse:
        """Whether new requests are taken."""
        if service.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "draining" if service.healthy else "unavailable"}, 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Everything that is counted, as Prometheus reads it."""
        stats = await asyncio.to_thread(service.generator.stats)
        return Response(service.metrics(stats), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/stats")
    async def stats() -> dict[str, Any]:
        """The same for people and pages, of the last seconds where that says more."""
        return statistics(service, await asyncio.to_thread(service.generator.stats))

    return router
