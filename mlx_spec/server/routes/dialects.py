"""Generation under all APIs: one function over ``Dialect``.

FastAPI is told what bodies look like for the OpenAPI schema alone; they are read here, so that no
``Content-Type`` is needed and every mistake is told in the API's own format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from mlx_spec.server.dialects import DIALECTS
from mlx_spec.server.event_stream import EventStream, spoken
from mlx_spec.server.exchange import answered, fault_counted, prioritized
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.dialect import Dialect
from mlx_spec.server.protocol.faults import failed, parse
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.refusals import Refused
from mlx_spec.server.service import Service

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
# What the schema says of refusals; their bodies are the API's own errors.
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "It can never be served; the message says why."},
    401: {"description": "A key is needed."},
    413: {"description": "The body is too large."},
    429: {"description": "The queue is full; Retry-After says when to come again."},
    503: {"description": "The server is shutting down."},
}


class RawRoute(APIRoute):
    """A route whose handler reads the request itself; its endpoint is for the schema alone."""

    handler: Handler

    def get_route_handler(self) -> Handler:
        """The handler, as it is."""
        return self.handler


def raw_route(handle: Handler) -> type[RawRoute]:
    """The route class of a handler."""
    return type("_RawRoute", (RawRoute,), {"handler": staticmethod(handle)})


def schema_of(body: Any) -> Callable[..., None]:
    """An endpoint that tells FastAPI what is read."""

    def endpoint(body: Any) -> None:
        raise NotImplementedError

    endpoint.__annotations__["body"] = body
    return endpoint


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """All dialects, each under its path."""
    router = APIRouter(tags=["generation"])
    for path, dialect in DIALECTS.items():
        router.add_api_route(
            path,
            schema_of(dialect.body),
            methods=["POST"],
            name=dialect.name,
            response_model=None,
            responses=REFUSALS,
            route_class_override=raw_route(_handler(service, options, dialect)),
        )
    return router


def _handler(service: Service, options: ServerOptions, dialect: Dialect) -> Handler:
    served = service.served

    async def handle(request: Request) -> Response:
        began = time.monotonic()

        async def answer() -> Response:
            asked = await service.in_thread(_read, dialect, await request.body(), served)
            asked = prioritized(asked, request)
            running = await service.submit(asked)
            if not asked.stream:
                results = await running.results()
                if fault := failed(results):
                    raise Refused(fault)
                return JSONResponse(await service.in_thread(dialect.whole, asked, results, served))
            with running.unless_broken():
                writer = dialect.writer(asked, served)
            told = partial(fault_counted, service)
            events = spoken(running, writer, began + options.request_timeout, told)
            return EventStream(running, events)

        return await answered(service, request, answer)

    return handle


def _read(dialect: Dialect, body: bytes, served: ServedModel) -> Asked:
    return dialect.read(parse(dialect.body, body), served)
