"""What is too much, too strange or too deep is refused in words, and neighbours do not notice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from mlx_spec.server.options import ServerOptions
from mlx_spec.server.service import Service
from tests.servers import CHAT, asgi_client, content_of, open_toy, said, step_when, truth

LIMITS = {
    "max_request_bytes": 400_000,
    "max_prompt_tokens": 200,
    "max_output_tokens": 300,
    "max_n": 3,
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_toy(ServerOptions(port=0, **LIMITS)) as made:
        yield made


def exploding_schema() -> dict[str, Any]:
    """Small to write, and enormous to write out: all combinations of what may be."""
    each = range(10)
    options = [{"anyOf": [{"properties": {f"a{i}_{j}": {}}} for j in each]} for i in each]
    return {"allOf": options}


def shaped(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


BODIES: dict[str, tuple[Any, int]] = {
    "empty": (b"", 400),
    "no JSON": (b"{messages: 5", 400),
    "no object": (b"[1, 2]", 400),
    "a number": (b"7", 400),
    "not UTF-8": (b'{"messages": "\xff\xfe"}', 400),
    "half a pair": (json.dumps(said(content="\ud800")).encode(), 400),
    "not a number": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400),
    "infinite": (b'{"messages": [{"role": "user", "content": "a"}], "top_p": 1e999}', 400),
    "deeply nested": (deep(100_000).encode(), 400),
    "deep inside": (b'{"messages": [], "tools": ' + deep(50_000).encode() + b"}", 400),
    "a huge number": (b'{"messages": [], "seed": ' + b"9" * 50_000 + b"}", 400),
    "too large": (json.dumps(said(content="a " * 250_000)).encode(), 413),
    "no context holds it": (said(content="def " * 5000), 400),
    "too many tokens": (said() | {"max_tokens": 301}, 400),
    "no tokens": (said() | {"max_tokens": 0}, 400),
    "too many texts": (said(n=4, temperature=1.0), 400),
    "10,000 stops": (said(stop=[f"stop {i}" for i in range(10_000)]), 400),
    "a strange role": (said() | {"messages": [{"role": 5, "content": "a"}]}, 400),
    "no messages": (said() | {"messages": []}, 400),
    "a hot temperature": (said(temperature=1e6), 400),
    "no such schema": (said(response_format=shaped({"type": "nothing"})), 400),
    "an exploding schema": (said(response_format=shaped(exploding_schema())), 400),
    "a schema in itself": (said(response_format=shaped({"$ref": "#"})), 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_it_is_refused_in_words_and_a_neighbour_does_not_notice(
    service: Service, name: str
) -> None:
    body, status = BODIES[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def ask() -> tuple[httpx.Response, ...]:
        async with asgi_client(service) as client:
            neighbour = asyncio.create_task(
                client.post(CHAT, json=said(content="class Stack:") | {"max_tokens": 60})
            )
            refused = await client.post(CHAT, content=data)
            return refused, await neighbour

    refused, neighbour = asyncio.run(ask())
    assert refused.status_code == status, refused.text
    message = refused.json()["error"]["message"]
    assert 10 < len(message) < 1000
    assert "Traceback" not in refused.text
    assert content_of(neighbour) == truth("class Stack:", 60)
    assert service.outstanding == 0


def test_a_body_without_a_length_is_counted_as_it_comes(service: Service) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"messages": "'
        for _ in range(50):
            yield b"a" * 10_000

    async def ask() -> httpx.Response:
        async with asgi_client(service) as client:
            return await client.post(CHAT, content=pieces())

    reply = asyncio.run(ask())
    assert reply.status_code == 413
    assert reply.headers["connection"] == "close"


def test_no_content_type_is_needed(service: Service) -> None:
    """As people write it: curl URL -d '{...}'."""

    async def ask() -> httpx.Response:
        async with asgi_client(service) as client:
            headers = {"content-type": "application/x-www-form-urlencoded"}
            return await client.post(CHAT, content=json.dumps(said()), headers=headers)

    assert asyncio.run(ask()).status_code == 200


def test_a_text_without_an_end_gets_the_servers(service: Service) -> None:
    async def ask() -> httpx.Response:
        async with asgi_client(service) as client:
            return await client.post(CHAT, json=said() | {"max_tokens": None})

    reply = asyncio.run(ask())
    assert reply.json()["usage"]["completion_tokens"] <= 300


def test_what_takes_too_long_ends_and_frees_its_row() -> None:
    """Steps take none of them further: both must be given up, also the one that streams."""
    options = ServerOptions(port=0, request_timeout=1.0)

    async def ask(service: Service) -> list[httpx.Response]:
        async with asgi_client(service) as client:
            bodies = [said(stream=stream) | {"max_tokens": 400} for stream in (False, True)]
            return await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))

    with open_toy(options, batch_size=1) as service:
        step_when(service, lambda _: False)
        whole, streamed = asyncio.run(ask(service))
        service.generator.drain(60)
        assert service.generator.stats().running == 0
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "timeout"
    # Its status is written as soon as the engine has taken it, if that was in time.
    assert streamed.status_code in (200, 504)
    assert '"timeout"' in streamed.text
