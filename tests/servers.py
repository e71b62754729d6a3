"""Servers for tests: a real one in a thread, and the application alone.

    with running_server() as live:
        httpx.post(f"{live.url}/v1/chat/completions", json=...)

The model is a tiny random one over the embedded tokenizer, with a chat template.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from mlx_spec import BatchingConfig, ChatConfig, SamplingParams, batch_generate
from mlx_spec.server.app import make_app
from mlx_spec.server.flags import ServeFlags
from mlx_spec.server.keys import ApiKeys
from mlx_spec.server.listening import HttpServer, address_of, open_sockets
from mlx_spec.server.opening import open_service
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.service import Service
from tests import api_support

CHAT = "/v1/chat/completions"
SAFETY = 120.0  # seconds; nothing waits for so long but where it is broken
LOCAL = "http://127.0.0.1"


@dataclass(frozen=True)
class Live:
    """A server that runs.

    Attributes:
        url: where.
        service: what it serves.
        server: the loop around it.
        port: of 127.0.0.1.
    """

    url: str
    service: Service
    server: HttpServer
    port: int

    def client(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=SAFETY, **options)


def toy(context: int = 512) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    return api_support.model(context), api_support.tokenizer(api_support.TEMPLATE)


@contextmanager
def open_toy(
    options: ServerOptions | None = None, target: Any = None, draft: Any = None, **flags: Any
) -> Iterator[Service]:
    """A service over a toy model; ``flags`` are those of ``mlx-spec serve``."""
    flags = {"model": "toy", "batch_size": 4, "prefix_cache_bytes": 2**22, **flags}
    options = options or ServerOptions(port=0)
    with open_service(ServeFlags(**flags), options, target or toy(), draft) as service:
        yield service


def asgi_client(service: Service, **headers: str) -> httpx.AsyncClient:
    """A client of the application alone: no sockets, answers come whole."""
    app = make_app(service, service.options, ApiKeys.of(service.options, {}))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=LOCAL, headers=headers, timeout=SAFETY)


@contextmanager
def running_server(options: ServerOptions | None = None, **toy_options: Any) -> Iterator[Live]:
    """A real server in a thread, at a port that the system chose; drained at the end."""
    options = options or ServerOptions(port=0)
    with open_toy(options, **toy_options) as service:
        sockets, started = open_sockets(options), threading.Event()
        app = make_app(service, options, ApiKeys.of(options, {}))
        server = HttpServer(app, service, started.set)
        thread = threading.Thread(target=server.run, args=(sockets,), name="test-server")
        thread.start()
        try:
            assert started.wait(SAFETY)
            port = sockets[0].getsockname()[1]
            yield Live(address_of(sockets[0]), service, server, port)
        finally:
            server.drain()
            thread.join(SAFETY)
            assert not thread.is_alive()


def said(**options: Any) -> dict[str, Any]:
    """A chat request."""
    messages = [{"role": "user", "content": options.pop("content", "def read_")}]
    return {"messages": messages, "max_tokens": 8, **options}


def events_of(text: str) -> list[Any]:
    """The data of server-sent events, without the mark of the end."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def truth(content: str, count: int, **options: Any) -> str:
    """What the model says alone, without a draft."""
    model, tokenizer = toy()
    sampling = SamplingParams(max_tokens=count, **options)
    (result,) = batch_generate(
        model,
        tokenizer,
        [content],
        sampling=sampling,
        chat=ChatConfig(),
        speculation=api_support.OFF,
        batching=BatchingConfig(batch_size=1),
    ).results
    return result.text


def content_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def ask_all(service: Service, *requests: tuple[str, str, Any], **headers: str) -> list[Any]:
    """(method, path, JSON) one after the other."""

    async def ask() -> list[Any]:
        async with asgi_client(service, **headers) as client:
            return [await client.request(way, path, json=body) for way, path, body in requests]

    return asyncio.run(ask())


def step_when(service: Service, ready: Callable[[Any], bool]) -> None:
    """No step until the engine is ``ready``, asked at each boundary: what is to meet has met."""
    engine: Any = service.generator._worker._engine
    step = engine.step

    def held(**options: Any) -> Any:
        if not ready(engine):
            time.sleep(0.005)
            return []
        return step(**options)

    engine.step = held


def have_met(count: int) -> Callable[[Any], bool]:
    """Whether so many requests have been there together; from then on, for ever."""
    met: list[bool] = []

    def ready(engine: Any) -> bool:
        if engine.scheduler.backlog + engine.scheduler.active == count:
            met.append(True)
        return bool(met)

    return ready
