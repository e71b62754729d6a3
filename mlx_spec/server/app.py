"""``make_app``: the routes behind their guards, as one ASGI application.

From the outside in: responses to other origins' pages (CORS), who may ask, how large and slow a
request may be, the routes. There is no page of documentation that loads scripts from elsewhere; the
schema is at ``/openapi.json``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlx_spec import __version__
from mlx_spec.errors import MlxSpecError
from mlx_spec.server.body_limits import BodyLimits
from mlx_spec.server.exchange import failing, fault_counted
from mlx_spec.server.guard import Guard
from mlx_spec.server.keys import ApiKeys
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.faults import Fault, words
from mlx_spec.server.refusals import fault_response
from mlx_spec.server.routes import (
    absent,
    batch,
    batches,
    count_tokens,
    dialects,
    health,
    models,
    page,
)
from mlx_spec.server.service import Service

FAMILIES = (page, dialects, count_tokens, batch, batches, models, health, absent)
_NO_KEYS = ApiKeys()


def make_app(service: Service, options: ServerOptions, keys: ApiKeys = _NO_KEYS) -> FastAPI:
    """The application.

    Args:
        service: what routes ask.
        options: limits and who may ask.
        keys: those who may; empty for everybody who reaches it.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            for work in service.works:
                stack.enter_context(work)
            yield

    app = FastAPI(
        title="mlx-spec", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    for family in FAMILIES:
        app.include_router(family.routes(service, options))
    _handle_errors(app, service)
    # The last one added is the outermost.
    app.add_middleware(BodyLimits, options=options)
    app.add_middleware(Guard, keys=keys, options=options, count=service.count)
    if options.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return app


def _handle_errors(app: FastAPI, service: Service) -> None:
    """Every error that leaves a route is told in the format of its path's API."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code == 404:
            error.detail = f"there is nothing at {request.method} {request.scope['path']}"
        response = fault_response(request.scope["path"], fault_counted(service, error))
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})  # which methods there are
        return response

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fault = Fault(400, "invalid_request", words(error.errors()))
        return failing(service, request.scope["path"], fault)

    for kind in (HTTPException, MlxSpecError, Exception):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(RequestValidationError, invalid)
