"""Who may ask: no path and no header lets anybody read or generate without a key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.app import make_app
from mlx_spec.server.keys import VARIABLE, ApiKeys
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.service import Service
from tests.servers import CHAT, asgi_client, open_toy, said

KEY = "sk-test-1234"
OPEN = {("get", "/health"), ("get", "/ready"), ("get", "/"), ("get", "/page/{name}")}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Service]:
    with open_toy(ServerOptions(port=0, api_key=(KEY, "other"))) as made:
        yield made


def ask(service: Service, method: str, path: str, body: Any = None, **headers: str) -> Any:
    async def one() -> httpx.Response:
        async with asgi_client(service) as client:
            return await client.request(method, path, json=body, headers=headers)

    return asyncio.run(one())


def every_route(service: Service) -> list[tuple[str, str]]:
    """(method, path) of all that the schema has, and what it does not."""
    schema = make_app(service, service.options).openapi()
    found = [(way, path) for path, ways in schema["paths"].items() for way in ways]
    assert len(found) >= 8
    return [*found, ("get", "/openapi.json"), ("get", "/nowhere"), ("options", CHAT)]


WRONG = [
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Bearer "},
    {"authorization": f"Basic {KEY}"},
    {"authorization": KEY},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"x-api-key": "wrong"},
    {"x-api-key": ""},
    {"api-key": KEY},
    {"cookie": f"api_key={KEY}"},
    {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "host": "localhost"},
    {"origin": "http://127.0.0.1"},
]


def test_every_route_wants_a_key(guarded: Service) -> None:
    async def matrix() -> list[tuple[str, str, int]]:
        open_to_all = []
        async with asgi_client(guarded) as client:
            for way, path in every_route(guarded):
                for headers in WRONG:
                    reply = await client.request(way.upper(), path, headers=headers)
                    if reply.status_code != 401:
                        open_to_all.append((way, path, reply.status_code))
        return open_to_all

    found = {(way, path) for way, path, _ in asyncio.run(matrix())}
    assert found <= OPEN
    assert {("get", "/health"), ("get", "/ready")} <= found


@pytest.mark.parametrize(
    "path",
    [
        "//v1/stats",
        "/v1/stats/",
        "/health/../v1/stats",
        "/page/../v1/stats",
        "/page/..%2fv1/stats",
        "/%2e%2e/v1/stats",
        "/health?x=/v1/stats",
        "/v1%2Fstats",
        "/V1/STATS",
        "/health;/v1/stats",
        "/metrics%00",
    ],
)
def test_no_spelling_of_a_path_goes_around_the_key(guarded: Service, path: str) -> None:
    """The raw path, as an attacker's own client would send it."""

    async def one() -> list[Any]:
        app = make_app(guarded, guarded.options, ApiKeys.of(guarded.options, {}))
        raw, _, query = path.partition("?")
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": httpx.URL(f"http://a{raw}").path,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [],
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "root_path": "",
        }
        await app(scope, receive, send)
        return sent

    start, *bodies = asyncio.run(one())
    text = b"".join(message.get("body", b"") for message in bodies)
    assert start["status"] in (401, 404) or path.startswith("/health?")
    assert b"throughput_tps" not in text


@pytest.mark.parametrize("header", [{"authorization": f"Bearer {KEY}"}, {"x-api-key": "other"}])
def test_a_key_opens(guarded: Service, header: dict[str, str]) -> None:
    assert ask(guarded, "POST", CHAT, said(), **header).status_code == 200
    assert ask(guarded, "GET", "/v1/stats", **header).status_code == 200


def test_a_refusal_is_told_in_the_callers_format(guarded: Service) -> None:
    reply = ask(guarded, "POST", CHAT, said())
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"]["type"] == "authentication_error"
    assert guarded.refusals["unauthorized"] > 0


def test_keys_come_from_options_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nslow -5\n\nplain\n", encoding="utf-8")
    options = ServerOptions(api_key=("a",), api_key_file=str(path))
    keys = ApiKeys.of(options, {VARIABLE: "b"})
    found = {name: keys.find(name.encode()) for name in ("a", "b", "slow", "plain", "# ours", "c")}
    assert found["slow"] == (True, -5)
    assert found["a"] == found["b"] == found["plain"] == (True, None)
    assert found["# ours"] == found["c"] == (False, None)
    assert "slow" not in repr(keys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "give --api-key"),
        ({"host": "192.168.1.5"}, "lets the network in"),
        ({"host": "example.org"}, "lets the network in"),
        ({"api_key": ("two words",)}, "printable ASCII"),
        ({"api_key": ("",)}, "printable ASCII"),
        ({"api_key_file": "/nowhere/keys"}, "No such file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ApiKeys.of(ServerOptions(**options), {})


def test_the_network_may_ask_with_a_key_or_where_it_is_wanted() -> None:
    for options in (
        {"host": "0.0.0.0", "insecure": True},
        {"host": "0.0.0.0", "api_key": ("k",)},
        {"host": "::1"},
        {"host": "127.8.8.8"},
        {"host": "localhost"},
    ):
        ApiKeys.of(ServerOptions(**options), {})


def test_a_key_may_stand_for_a_priority(tmp_path: Path) -> None:
    """The header can lower it, and never raise it."""
    path = tmp_path / "keys"
    path.write_text("slow -5\nfree\n", encoding="utf-8")
    seen: list[int] = []
    with open_toy(ServerOptions(port=0, api_key_file=str(path))) as service:
        submit = service.generator.submit

        def noted(*given: Any, priority: int, **options: Any) -> Any:
            seen.append(priority)
            return submit(*given, priority=priority, **options)

        service.generator.submit = noted  # type: ignore[method-assign, assignment]
        for key, header in (("slow", "9"), ("slow", "-9"), ("free", "9"), ("slow", None)):
            more = {} if header is None else {"x-priority": header}
            assert ask(service, "POST", CHAT, said(), **{"x-api-key": key}, **more).is_success
    assert seen == [-5, -9, 9, -5]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "127.0.0.1:80", "origin": "http://127.0.0.1:80"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "127.0.0.1:80", "origin": "http://127.0.0.1:81"}, 403),
    ],
)
def test_without_a_key_other_peoples_pages_are_kept_out(
    service: Service, headers: dict[str, str], status: int
) -> None:
    """Stops DNS rebinding, and requests that a page sends without reading the answer."""
    for way, path, body in (("POST", CHAT, said()), ("GET", "/v1/stats", None)):
        assert ask(service, way, path, body, **headers).status_code == status


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_toy() as made:
        yield made


def test_other_origins_are_off_by_default(service: Service, guarded: Service) -> None:
    preflight = {
        "origin": "http://localhost:3000",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for one in (service, guarded):
        reply = ask(one, "OPTIONS", CHAT, **preflight)
        assert "access-control-allow-origin" not in reply.headers
        assert reply.status_code in (401, 403)


def test_an_origin_that_is_named_may_ask() -> None:
    origin = "http://localhost:3000"
    options = ServerOptions(port=0, api_key=(KEY,), cors_origin=(origin,))
    with open_toy(options) as service:
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        reply = ask(service, "OPTIONS", CHAT, **preflight)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == origin
        refused = ask(service, "POST", CHAT, said(), origin=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == origin
        other = ask(service, "OPTIONS", CHAT, **{**preflight, "origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_secrets_are_in_no_answer(guarded: Service) -> None:
    for path in ("/v1/stats", "/metrics", "/openapi.json", "/v1/models"):
        assert KEY not in ask(guarded, "GET", path, **{"x-api-key": KEY}).text
