"""What routes have in common: a body is read, an answer is made, and both end when the caller goes.

Every error on the way becomes a response in the format of the path's API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mlx_spec.errors import InvalidRequest, MlxSpecError
from mlx_spec.server.guard import PRIORITY
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.refusals import fault_response, refused, told
from mlx_spec.server.service import Service

LOG = logging.getLogger("mlx_spec.server")
HEADER = "x-priority"
MOST_URGENT = 100
# For nobody: the caller has gone (a proxy's word for it), perhaps in the middle of its request.
_GONE = 499


def fault_counted(service: Service, error: BaseException) -> Fault:
    """What a caller is told of an error; it is counted, and logged where nobody foresaw it."""
    fault = service.count(told(error))
    if fault.status == 500 and not isinstance(error, (MlxSpecError, HTTPException)):
        LOG.error("a request failed: %r", error, exc_info=error)
    return fault


async def answered(
    service: Service, request: Request, answer: Callable[[], Awaitable[Response]]
) -> Response:
    """The answer, or an error's; given up when the caller goes or the time is over."""
    try:
        # Behind the body nothing comes but word that the caller has gone.
        await _body(service, request)
        return await _unless_gone(request, answer(), service.options.request_timeout)
    except ClientDisconnect:
        return Response(status_code=_GONE)
    except Exception as error:
        return fault_response(request.scope["path"], fault_counted(service, error))


async def _body(service: Service, request: Request) -> None:
    """Read all of it.

    Raises:
        ClientDisconnect: it ended in the middle.
    """
    try:
        await request.body()
    except ClientDisconnect:
        service.count(refused(_GONE, "the request ended in its middle", "incomplete").fault)
        raise


def failing(service: Service, path: str, fault: Fault) -> JSONResponse:
    """A fault as a response, counted."""
    return fault_response(path, service.count(fault))


def prioritized(asked: Asked, request: Request) -> Asked:
    """With the priority of the header, or of the key, above which the header cannot go.

    Raises:
        InvalidRequest: the header is no whole number within bounds.
    """
    ceiling: int | None = request.scope.get(PRIORITY)
    text = request.headers.get(HEADER)
    priority = asked.priority if ceiling is None else ceiling
    if text is not None:
        try:
            priority = int(text)
        except ValueError:
            raise InvalidRequest(f"X-Priority is {text!r}, expected a whole number") from None
    if abs(priority) > MOST_URGENT:
        raise InvalidRequest(f"the priority is {priority}, expected -{MOST_URGENT}..{MOST_URGENT}")
    return replace(asked, priority=priority if ceiling is None else min(ceiling, priority))


async def _unless_gone(request: Request, answer: Awaitable[Response], timeout: float) -> Response:
    """Wait for the answer, but not for longer than its caller does.

    Raises:
        ClientDisconnect: nobody waits.
        TimeoutError: it took too long.
    """
    work = asyncio.ensure_future(answer)
    both: set[asyncio.Future[Any]] = {work, asyncio.ensure_future(_gone(request))}
    try:
        done, _ = await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        raise ClientDisconnect if done else TimeoutError
    finally:
        for one in both:
            one.cancel()
        # Cancelled, it has let go of its rows before the caller's connection is forgotten.
        await asyncio.wait(both)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
