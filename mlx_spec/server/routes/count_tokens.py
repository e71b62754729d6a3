"""``POST /v1/messages/count_tokens``: how many tokens a request of Anthropic's API would read."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from mlx_spec.server.exchange import answered
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.faults import parse
from mlx_spec.server.protocol.messages import MessagesBody, count_tokens
from mlx_spec.server.routes.dialects import REFUSALS, raw_route, schema_of
from mlx_spec.server.service import Service


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["generation"])

    def count(body: bytes) -> Response:
        return JSONResponse(count_tokens(parse(MessagesBody, body), service.served))

    async def handle(request: Request) -> Response:
        async def answer() -> Response:
            return await service.in_thread(count, await request.body())

        return await answered(service, request, answer)

    router.add_api_route(
        "/v1/messages/count_tokens",
        schema_of(MessagesBody),
        methods=["POST"],
        name="count_tokens",
        response_model=None,
        responses=REFUSALS,
        route_class_override=raw_route(handle),
    )
    return router
