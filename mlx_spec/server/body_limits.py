"""``BodyLimits``: how large a request may be, and how slowly it may come.

The body goes through as it comes; what passes a limit is raised where the route reads it, as
``HTTPException``, which the routes' error handlers write in the path's own format.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_spec.server.options import ServerOptions

UPLOADS = "/v1/files"
_CLOSE = {"Connection": "close"}


class BodyLimits:
    """Middleware around the routes, inside of their error handlers' reach.

    Args:
        app: the routes.
        options: the server's.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            options = self._options
            upload = scope["path"].rstrip("/") == UPLOADS
            most = options.max_file_bytes if upload else options.max_request_bytes
            # A file may take as much longer as it may be larger.
            patience = options.read_timeout * max(1.0, most / options.max_request_bytes)
            receive = _Watched(receive, scope, most, patience)
        await self._app(scope, receive, send)


class _Watched:
    """``receive`` of one request, watched until its body is complete."""

    def __init__(self, receive: Receive, scope: Scope, most: int, patience: float) -> None:
        self._receive, self._most = receive, most
        self._patience = patience
        self._until = time.monotonic() + patience
        self._size = 0
        self._complete = False
        length = Headers(scope=scope).get("content-length", "")
        self._said = int(length) if length.isascii() and length.isdigit() else 0

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        self._check(self._said)
        try:
            left = max(0.0, self._until - time.monotonic())
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError:
            raise HTTPException(
                408, f"the request did not come in within {self._patience:g} s", _CLOSE
            ) from None
        self._size += len(message.get("body", b""))
        self._check(self._size)
        self._complete = not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        if size > self._most:
            raise HTTPException(
                413, f"the request has {size} bytes, at most {self._most} are read", _CLOSE
            )
