"""``POST /generate/batch``: several prompts at once, plainly; each with its own figures.

They run together with everybody else's; one that ends leaves its row at once. Streamed, each
result is told when it is there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from mlx_spec.results import GenerationResult
from mlx_spec.server.event_stream import EventStream, event_of, paced
from mlx_spec.server.exchange import answered, fault_counted, prioritized
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.faults import parse
from mlx_spec.server.protocol.served import ServedModel
from mlx_spec.server.refusals import fault_body
from mlx_spec.server.routes.dialects import REFUSALS, raw_route, schema_of
from mlx_spec.server.running import Running
from mlx_spec.server.service import Service

PATH = "/generate/batch"


class PromptsBody(BaseModel):
    """What is asked for; what is left out is as the server was started."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[str | list[int] | list[dict[str, Any]]] = Field(min_length=1)
    """Texts, token ids, or chat messages."""
    chat: bool = False
    """A text is a message of the user, put through the chat template."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False


def routes(service: Service, options: ServerOptions) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["generation"])

    async def handle(request: Request) -> Response:
        deadline = time.monotonic() + options.request_timeout

        async def answer() -> Response:
            asked = await service.in_thread(_read, await request.body(), service.served)
            running = await service.submit(prioritized(asked, request))
            if asked.stream:
                events = _as_they_end(service, running, deadline)
                return EventStream(running, events)
            results = [_told(*pair) for pair in enumerate(await running.results())]
            return JSONResponse({"model": service.served.name, "results": results})

        return await answered(service, request, answer)

    router.add_api_route(
        PATH,
        schema_of(PromptsBody),
        methods=["POST"],
        name="generate_batch",
        response_model=None,
        responses=REFUSALS,
        route_class_override=raw_route(handle),
    )
    return router


def _read(body: bytes, served: ServedModel) -> Asked:
    given: PromptsBody = parse(PromptsBody, body)
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop")
    said = {name: value for name in names if (value := getattr(given, name)) is not None}
    return Asked(
        prompts=tuple(given.prompts),
        sampling=replace(served.defaults, **said),
        chat=replace(served.chat, texts=given.chat),
        stream=given.stream,
    )


def _told(index: int, result: GenerationResult) -> dict[str, Any]:
    """One sequence; times in seconds, from the moment on at which it was queued."""
    told = {
        "index": index,
        "text": result.text,
        "tokens": result.generation_tokens,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "reused_tokens": result.reused_tokens,
        "ttft": result.ttft,
        "duration": result.duration,
        "drafted": result.drafted,
        "accepted": result.accepted,
        "acceptance_rate": result.acceptance_rate,
        "seed": result.seed,
    }
    return told if result.error is None else {**told, "error": result.error}


async def _as_they_end(service: Service, running: Running, deadline: float) -> AsyncIterator[bytes]:
    try:
        async with aclosing(paced(running.ended(), deadline)) as ended:
            async for pair in ended:
                yield KEEPALIVE_COMMENT if pair is None else event_of(_told(*pair))
        yield event_of({"done": True})
    except Exception as error:
        running.cancel()
        yield event_of(fault_body(PATH, fault_counted(service, error)))
