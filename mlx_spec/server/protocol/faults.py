"""``Fault``: what went wrong, in words for a caller, and from which of our errors it comes.

Nothing of the inside is told: what nobody foresaw is "an internal error" to callers, and the log's
affair.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from mlx_spec.errors import (
    CapacityError,
    GeneratorClosed,
    InvalidRequest,
    OutOfMemory,
    PromptTooLong,
)
from mlx_spec.results import GenerationResult

MOST_FAULTS = 3  # of one body that are told


@dataclass(frozen=True)
class Fault:
    """A refusal or a failure.

    Attributes:
        status: HTTP's number for it.
        kind: one word: ``invalid_request``, ``context_length_exceeded``, ``unauthorized``,
            ``not_found``, ``too_large``, ``queue_full``, ``draining``, ``timeout``, ``internal``...
        message: what to do about it, for a person.
        retry_after: seconds after which it may go, where that is known.
    """

    status: int
    kind: str
    message: str
    retry_after: float | None = None


def parse(model: type[BaseModel], data: bytes | str) -> Any:
    """The body of a request, checked.

    Raises:
        InvalidRequest: no JSON, or not of this form; the fields are named.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise InvalidRequest(words(error.errors(include_url=False))) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is no JSON that can be read") from error


def words(errors: Seq[Any]) -> str:
    """Pydantic's findings in one line."""
    told = []
    for one in errors[:MOST_FAULTS]:
        place = ".".join(str(part) for part in one["loc"])
        text = str(one["msg"])
        told.append(f"{place}: {text}" if place else text)
    more = len(errors) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def fault_of(error: BaseException) -> Fault:
    """What a caller is told of an exception."""
    if isinstance(error, PromptTooLong):
        return Fault(400, "context_length_exceeded", str(error))
    if isinstance(error, InvalidRequest):
        return Fault(400, "invalid_request", str(error))
    if isinstance(error, ValidationError):
        return Fault(400, "invalid_request", words(error.errors(include_url=False)))
    if isinstance(error, CapacityError):
        return Fault(503, "overloaded", str(error))
    if isinstance(error, GeneratorClosed):
        return Fault(503, "draining", "the server is shutting down")
    if isinstance(error, TimeoutError):
        return Fault(504, "timeout", "the request took longer than this server allows")
    return Fault(500, "internal", "an internal error; the server's log says more")


def failed(results: Seq[GenerationResult]) -> Fault | None:
    """What became of a request one of whose texts did not end well; None where all did."""
    for number, result in enumerate(results):
        if result.error is not None and result.error.startswith(OutOfMemory.WORDS):
            return Fault(503, "out_of_memory", result.error, 1.0)
        if result.finish_reason == "error":
            return Fault(500, "generation_failed", f"text {number}: {result.error}")
        if result.finish_reason == "cancelled":
            return Fault(503, "cancelled", f"text {number} was cancelled by the server")
    return None


OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def openai_error(fault: Fault) -> dict[str, Any]:
    """As OpenAI's APIs write it."""
    usual = "server_error" if fault.status >= 500 else "invalid_request_error"
    kind = OPENAI_TYPES.get(fault.status, usual)
    error = {"message": fault.message, "type": kind, "param": None, "code": fault.kind}
    return {"error": error}


ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(fault: Fault) -> dict[str, Any]:
    """A refusal or a failure, as Anthropic's API writes it."""
    usual = "api_error" if fault.status >= 500 else "invalid_request_error"
    kind = ANTHROPIC_TYPES.get(fault.status, usual)
    return {"type": "error", "error": {"type": kind, "message": fault.message}}
