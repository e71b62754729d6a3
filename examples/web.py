"""A web app with a model inside: one request of a reader is four of the model, in one batch.

    pip install '.[server,structured]'
    MODEL=smollm2 uvicorn --app-dir examples web:app
    curl localhost:8000/review -d '{"text": "The tea was cold, but the cake was good."}'

What speaks OpenAI's API is `mlx-spec serve`. This is for what does not: routes of your own, several
questions about one text, answers of a given form. All readers' questions run in one batch, what
they begin with (the text) is read once, and a reader who goes away takes his questions along.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_spec import (  # before any import of mlx
    BatchedMLXGenerator,
    BatchingConfig,
    GeneratorClosed,
    InvalidRequest,
    SamplingParams,
    Structure,
    load,
)

QUESTIONS = {
    "title": ("Title:", SamplingParams(max_tokens=12, stop="\n")),
    "summary": ("Summary in one sentence:", SamplingParams(max_tokens=48, stop="\n")),
    "keywords": ("Keywords:", SamplingParams(max_tokens=24, stop="\n")),
    "mood": ("Mood:", SamplingParams(structure=Structure.choices([" good", " bad", " mixed"]))),
}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    model, tokenizer = load(os.environ.get("MODEL", "demo"))
    draft = load(os.environ["DRAFT"]) if "DRAFT" in os.environ else None
    batching = BatchingConfig(batch_size=16, prefix_cache_bytes=2**28)
    generator = BatchedMLXGenerator(model, tokenizer, draft_model=draft, batching=batching)
    async with generator:
        app.state.generator = generator
        yield


async def review(request: Request) -> Response:
    try:
        text = (await request.json())["text"]
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"error": "expected {'text': ...}"}, status_code=400)
    prompts = [f"Text: {text}\n{question}" for question, _ in QUESTIONS.values()]
    sampling = [options for _, options in QUESTIONS.values()]
    answers = asyncio.ensure_future(request.app.state.generator.agenerate(prompts, sampling))
    leaving = asyncio.ensure_future(left(request))
    await asyncio.wait((answers, leaving), return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not answers.done():
        answers.cancel()  # none of the four is left running
        return Response(status_code=499)
    try:
        results = await answers
    except InvalidRequest as error:  # a text that no context holds, for one
        return JSONResponse({"error": str(error)}, status_code=400)
    except GeneratorClosed as error:
        return JSONResponse({"error": str(error)}, status_code=503)
    texts = {name: one.text.strip() for name, one in zip(QUESTIONS, results, strict=True)}
    return JSONResponse(texts | {"reused_tokens": sum(one.reused_tokens for one in results)})


async def left(request: Request) -> None:
    """Returns when the reader goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def stats(request: Request) -> Response:
    now = request.app.state.generator.stats()
    return JSONResponse({"running": now.running, "waiting": now.waiting, "done": now.finished})


app = Starlette(
    routes=[Route("/review", review, methods=["POST"]), Route("/stats", stats)], lifespan=lifespan
)
