"""``Refused``: a request that is not served, with what its caller is told; and what all others are.

Errors outside of an API's own routes (a path that is none, no key) are told in the format that the
path's callers read: Anthropic's under ``/v1/messages``, else OpenAI's.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlx_spec.errors import MlxSpecError
from mlx_spec.server.dialects import dialect_of
from mlx_spec.server.protocol.faults import Fault, fault_of

KINDS = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "slow_request",
    413: "too_large",
    415: "invalid_request",
    422: "invalid_request",
    429: "queue_full",
    431: "head_too_large",
    501: "not_implemented",
}


class Refused(MlxSpecError):
    """Not served; ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def refused(status: int, message: str, kind: str = "", retry_after: float | None = None) -> Refused:
    """A refusal in words."""
    return Refused(Fault(status, kind or KINDS.get(status, "internal"), message, retry_after))


def told(error: BaseException) -> Fault:
    """What a caller is told of any exception."""
    if isinstance(error, Refused):
        return error.fault
    if isinstance(error, HTTPException):
        kind = KINDS.get(error.status_code, "invalid_request")
        return Fault(error.status_code, kind, str(error.detail))
    return fault_of(error)


def fault_response(path: str, fault: Fault) -> JSONResponse:
    """A fault as the callers of a path read it.

    Where the body may not have been read to its end, the connection is closed.
    """
    headers = {}
    if fault.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(fault.retry_after)))
    if fault.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if fault.status in (401, 403, 408, 413, 431):
        headers["Connection"] = "close"
    return JSONResponse(fault_body(path, fault), fault.status, headers)


def fault_body(path: str, fault: Fault) -> dict[str, Any]:
    """A fault in the words of a path's API."""
    return dialect_of(path).error(fault)
