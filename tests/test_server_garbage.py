"""What is no HTTP, or has no end, on real sockets: refused or let go, counted, and unnoticed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_spec.server import connections, guard
from mlx_spec.server.options import ServerOptions
from tests.servers import CHAT, SAFETY, Live, content_of, running_server, said, truth
from tests.test_server_live import received, request_of
from tests.waiting import eventually

HOST = b"Host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(said()).encode()

GARBAGE: dict[str, tuple[bytes, int]] = {
    "noise": (bytes(range(256)) * 8, 400),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500, 400),
    "another protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
    "no version": (b"GET /health\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + b"Host: other\r\n\r\n", 400),
    "a header without a colon": (GET + b"Nothing\r\n\r\n", 400),
    "a folded host": (GET + b" : x\r\n\r\n", 403),
    "a zero in a header": (GET + b"X: a\x00b\r\n\r\n", 400),
    "a line that never ends": (b"GET /" + b"a" * 2_000_000, 431),
    "a header that never ends": (GET + b"X: " + b"a" * 2_000_000, 431),
    "headers that never end": (GET + b"X: a\r\n" * 400_000, 431),
    "too many headers": (GET + b"X: a\r\n" * 200 + b"\r\n", 431),
    "a long head at once": (GET + b"X: " + b"a" * 60_000 + b"\r\n\r\n", 431),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    "a length below nothing": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a length that is none": (POST + b"Content-Length: 0x10\r\n\r\n", 400),
    "another encoding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400),
    "a chunk without a size": (CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk of a size that never ends": (CHUNKED + b"5;" + b"a" * 200_000, 431),
    "trailers that never end": (CHUNKED + b"1\r\n{\r\n0\r\n" + b"X: a\r\n" * 100_000, 431),
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running_server(ServerOptions(port=0, read_timeout=60.0)) as server:
        yield server


def told(live: Live, data: bytes, hang_up: bool = True) -> bytes:
    """What a caller who says that, and no more, is told; nothing where it is only let go."""
    with socket.create_connection(("127.0.0.1", live.port)) as caller:
        caller.settimeout(SAFETY)
        sender = threading.Thread(target=_sent, args=(caller, data, hang_up))
        sender.start()  # the other side may close before it has read all
        try:
            answer = received(caller)
        except ConnectionError:
            answer = b""
        sender.join(SAFETY)
    return answer


def _sent(caller: socket.socket, data: bytes, hang_up: bool) -> None:
    try:
        caller.sendall(data)
        if hang_up:
            caller.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def neighbour(live: Live) -> None:
    with live.client() as client:
        assert content_of(client.post(CHAT, json=said(content="x"))) == truth("x", 8)


@pytest.mark.parametrize("name", GARBAGE)
def test_it_is_refused_and_counted(live: Live, name: str) -> None:
    data, status = GARBAGE[name]
    before = sum(live.service.refusals.values())
    answer = told(live, data)
    assert live.service.outstanding == 0
    # A caller who still sends when it is refused may lose the answer to its own noise.
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1] == str(status).encode(), answer[:300]
        error, _ = json.JSONDecoder().raw_decode(body.decode())
        assert len(error["error"]["message"]) > 10
    eventually(lambda: sum(live.service.refusals.values()) > before)
    neighbour(live)


def test_what_follows_a_request_does_not_harm_it(live: Live) -> None:
    """Garbage behind a request in one piece: its answer is whole, and then the other is refused."""
    answer = told(live, request_of(said(content="x")) + b"\x00garbage\r\n\r\n", False)
    first, _, rest = answer.partition(b"HTTP/1.1 400")
    assert json.loads(first.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == truth(
        "x", 8
    )
    assert b"no HTTP request" in rest


def test_several_requests_in_one_piece_are_answered_in_their_order(live: Live) -> None:
    second = request_of(said(content="def a"), Connection="close")
    parts = told(live, request_of(said(content="x")) + second, False).split(b"HTTP/1.1 200 OK")
    texts = [json.loads(one.partition(b"\r\n\r\n")[2])["choices"][0] for one in parts[1:]]
    assert [one["message"]["content"] for one in texts] == [truth("x", 8), truth("def a", 8)]


def test_half_a_body_is_counted(live: Live) -> None:
    before = live.service.refusals["incomplete"]
    assert told(live, request_of(said())[:-20]) == b""
    eventually(lambda: live.service.refusals["incomplete"] == before + 1)
    neighbour(live)


def test_a_head_that_comes_a_line_a_minute_is_let_go() -> None:
    """Each line is in time, and all of them together are not."""
    with running_server(ServerOptions(port=0, read_timeout=1.0)) as live:
        done = threading.Event()
        with socket.create_connection(("127.0.0.1", live.port)) as caller:
            caller.settimeout(SAFETY)

            def drip() -> None:
                while not done.wait(0.1):
                    try:
                        caller.sendall(b"X: a\r\n")
                    except OSError:
                        return

            caller.sendall(GET)
            dripping = threading.Thread(target=drip)
            dripping.start()
            neighbour(live)
            try:
                answer = received(caller)
            except ConnectionError:
                answer = b""
            done.set()
            dripping.join(SAFETY)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")
        assert live.service.refusals["slow_request"] == 1
        with live.client() as client:
            text = client.get("/metrics").text
        assert 'mlx_spec_refusals_total{reason="slow_request"} 1.0' in text


def test_without_bounds_a_long_head_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what comes is handed on in one piece, and nobody counts headers."""
    monkeypatch.setattr(connections, "PIECE", 2**30)
    monkeypatch.setattr(guard, "MOST_HEADERS", 2**30)
    with running_server() as live:
        for name in ("too many headers", "a long head at once"):
            answer: Any = told(live, GARBAGE[name][0])
            assert answer.startswith(b"HTTP/1.1 200 ")
