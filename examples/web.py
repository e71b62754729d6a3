"""A web service on ``BatchedMLXGenerator``: every client's request joins the running batch.

    pip install starlette uvicorn
    MODEL=demo uvicorn --app-dir examples web:app
    curl -N localhost:8000/chat -d '{"messages": [{"role": "user", "content": "Hello!"}]}'
    curl -N localhost:8000/chat -d '{"prompt": "def parse_header(", "max_tokens": 40}'

A client that goes away gives its row to the next one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_spec import (  # before any import of mlx
    BatchedMLXGenerator,
    BatchingConfig,
    GeneratorClosed,
    TokenStream,
    load,
)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    model, tokenizer = load(os.environ.get("MODEL", "demo"))
    draft = load(os.environ["DRAFT"]) if "DRAFT" in os.environ else None
    batching = BatchingConfig(batch_size=16, prefix_cache_bytes=2**28)
    generator = BatchedMLXGenerator(model, tokenizer, draft_model=draft, batching=batching)
    async with generator:
        app.state.generator = generator
        yield


async def chat(request: Request) -> Response:
    try:
        body = await request.json()
        prompt = body.get("messages") or body.get("prompt", "")
        stream = request.app.state.generator.submit(
            prompt, max_tokens=body.get("max_tokens", 200), temperature=body.get("temperature", 0)
        )
    except ValueError as error:  # an InvalidRequest, or a body that is no JSON
        return JSONResponse({"error": str(error)}, status_code=400)
    except GeneratorClosed as error:
        return JSONResponse({"error": str(error)}, status_code=503)
    return StreamingResponse(texts(stream), media_type="text/plain")


async def texts(stream: TokenStream) -> AsyncIterator[str]:
    try:
        async for chunk in stream:
            yield chunk.text
    finally:
        stream.cancel()  # the client went away; after the last token it does nothing


async def stats(request: Request) -> Response:
    now = request.app.state.generator.stats()
    return JSONResponse({"running": now.running, "waiting": now.waiting, "done": now.finished})


app = Starlette(
    routes=[Route("/chat", chat, methods=["POST"]), Route("/stats", stats)], lifespan=lifespan
)
