"""A real server: callers that leave, stand still, or come in too great a number; and its end."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import httpx
import pytest

from mlx_spec.server.listening import allow_files
from mlx_spec.server.options import ServerOptions
from tests.servers import CHAT, SAFETY, Live, content_of, events_of, running_server, said, truth
from tests.waiting import eventually

LONG = {"max_tokens": 400}


def request_of(body: Any, **headers: str) -> bytes:
    """The bytes of a chat request."""
    data = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def slow_steps(live: Live, hold: threading.Event) -> None:
    """Steps wait for ``hold``: until it is set, what runs is in the middle."""
    engine: Any = live.service.generator._worker._engine
    step = engine.step

    def held(**options: Any) -> Any:
        if engine.scheduler.active:
            hold.wait(0.05)
        return step(**options)

    engine.step = held


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_caller_that_leaves_frees_its_row_within_a_step(stream: bool) -> None:
    """Also one that waits for a whole answer; its neighbour's tokens are its own."""
    hold = threading.Event()
    with running_server(batch_size=2) as live, live.client() as client:
        slow_steps(live, hold)
        steps: list[int] = []
        with socket.create_connection(("127.0.0.1", live.port)) as caller:
            caller.sendall(request_of(said(stream=stream) | LONG))
            eventually(lambda: live.service.traffic.steps > 3)
            neighbour: list[httpx.Response] = []
            body = said(content="x") | {"max_tokens": 30}
            other = threading.Thread(target=lambda: neighbour.append(client.post(CHAT, json=body)))
            other.start()
            eventually(lambda: live.service.generator.stats().running == 2)
        eventually(lambda: live.service.traffic.ends["cancelled"] == 1)
        steps.append(live.service.traffic.steps)
        hold.set()
        other.join(SAFETY)
        assert content_of(neighbour[0]) == truth("x", 30)
        eventually(lambda: live.service.outstanding == 0)
        assert steps[0] < LONG["max_tokens"]


def test_a_caller_that_leaves_the_queue_leaves_it() -> None:
    hold = threading.Event()
    with running_server(batch_size=1) as live:
        slow_steps(live, hold)
        with socket.create_connection(("127.0.0.1", live.port)) as first:
            first.sendall(request_of(said(stream=True) | LONG))
            eventually(lambda: live.service.outstanding == 1)
            with socket.create_connection(("127.0.0.1", live.port)) as second:
                second.sendall(request_of(said(stream=True) | LONG))
                eventually(lambda: live.service.outstanding == 2)
            eventually(lambda: live.service.outstanding == 1)
            assert live.service.generator.stats().running == 1
        eventually(lambda: live.service.outstanding == 0)


def test_slow_and_half_closed_requests_are_let_go() -> None:
    """A head that never ends, a body that never comes, nothing at all; and one that hung up."""
    options = ServerOptions(port=0, read_timeout=2.0)
    heads = {
        "nothing": b"",
        "half a head": b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc",
        "half a body": request_of(said())[:-20],
    }
    with running_server(options) as live, live.client() as client:
        callers = {name: socket.create_connection(("127.0.0.1", live.port)) for name in heads}
        for name, data in heads.items():
            callers[name].sendall(data)
        half = socket.create_connection(("127.0.0.1", live.port))
        half.sendall(request_of(said())[:-20])
        half.shutdown(socket.SHUT_WR)
        assert content_of(client.post(CHAT, json=said(content="x"))) == truth("x", 8)
        said_to = {}
        for name, caller in {**callers, "half closed": half}.items():
            caller.settimeout(SAFETY)
            said_to[name] = received(caller)
            caller.close()
        assert said_to["nothing"] == said_to["half closed"] == b""
        for name in ("half a head", "half a body"):
            assert said_to[name].startswith(b"HTTP/1.1 408 ")
            assert b'"slow_request"' in said_to[name]
        assert live.service.refusals == {"slow_request": 2, "incomplete": 1}
        eventually(lambda: live.service.outstanding == 0)


def received(caller: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while part := caller.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_connection_too_many_is_told_so() -> None:
    options = ServerOptions(port=0, max_connections=2)
    with running_server(options) as live:
        held = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(2)]
        eventually(lambda: len(live.server.server_state.connections) == 2)
        with socket.create_connection(("127.0.0.1", live.port)) as third:
            third.settimeout(SAFETY)
            assert b"too many connections" in received(third)
        for one in held:
            one.close()
        eventually(lambda: not live.server.server_state.connections)
        with live.client() as client:
            assert client.get("/health").status_code == 200


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """For proxies that cut off what says nothing; clients do not see them."""
    from mlx_spec.server import event_stream

    monkeypatch.setattr(event_stream, "KEEP_ALIVE", 0.01)
    with running_server(batch_size=1) as live, live.client() as client:
        slow_steps(live, threading.Event())
        reply = client.post(CHAT, json=said(stream=True))
    assert ": ping\n\n" in reply.text
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in events_of(reply.text))
    assert text == truth("def read_", 8)


def test_draining_finishes_what_runs_and_the_door_says_so() -> None:
    hold = threading.Event()
    with running_server() as live, live.client() as client, live.client() as other:
        slow_steps(live, hold)
        with client.stream("POST", CHAT, json=said(stream=True) | LONG) as reply:
            lines = reply.iter_lines()
            next(lines)
            live.server.drain()
            eventually(lambda: live.service.draining)
            late = other.post(CHAT, json=said())
            assert (late.status_code, late.headers["retry-after"]) == (503, "1")
            assert other.get("/ready").status_code == 503
            hold.set()
            text = "\n".join(lines)
    assert text.endswith("data: [DONE]\n")
    deltas = [one["choices"][0]["delta"] for one in events_of(text)]
    assert "".join(one.get("content") or "" for one in deltas) == truth("def read_", 400)


def test_an_engine_that_fails_tells_its_callers_and_ends_the_server() -> None:
    """No answer is cut short and passed off as whole; a supervisor starts another one."""
    hold = threading.Event()

    def explode(engine: Any) -> None:
        raise RuntimeError("planted secret")

    with running_server() as live, live.client() as client:
        slow_steps(live, hold)
        with client.stream("POST", CHAT, json=said(stream=True) | LONG) as reply:
            lines = reply.iter_lines()
            next(lines)
            live.service.generator._worker.post(explode)
            text = "\n".join(lines)
        eventually(lambda: live.server.broken)
    assert '"error"' in text
    assert 'finish_reason": "' not in text
    assert "secret" not in text


def test_a_process_may_have_as_many_files_as_connections() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_files(600)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 600
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


SCRIPT = """
import sys
from mlx_spec.cli.main import main
sys.exit(main(["serve", "--port", "0", "--batch-size", "4"]))
"""


def started(process: subprocess.Popen[str]) -> str:
    """The address that a server in a process names."""
    assert process.stderr is not None
    for line in process.stderr:
        if " at http://" in line:
            return line.split(" at ")[1].split("/v1")[0]
    raise AssertionError("it did not start")


def served() -> subprocess.Popen[str]:
    """A server in a process of its own, over the embedded pair."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, env=os.environ
    )


class Asking(threading.Thread):
    """Asks for texts, and signals the server once they are being written."""

    def __init__(self, url: str, count: int) -> None:
        super().__init__()
        self.url, self.body = url, {"prompts": ["def a", "x"], "max_tokens": count}
        self.reply: httpx.Response | None = None

    def run(self) -> None:
        self.reply = httpx.post(f"{self.url}/generate/batch", json=self.body, timeout=SAFETY)

    def running(self) -> bool:
        """Whether they are."""
        happening = httpx.get(f"{self.url}/v1/stats", timeout=SAFETY).json()["happening"]
        return bool(happening["steps"] > 2)


def test_sigterm_cuts_nothing_off() -> None:
    """What runs is written to its end, and then the process ends with 0."""
    with served() as process:
        asking = Asking(started(process), 100)
        asking.start()
        eventually(asking.running)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SAFETY) == 0
    asking.join(SAFETY)
    assert asking.reply is not None
    results = asking.reply.json()["results"]
    assert [one["tokens"] == 100 or one["finish_reason"] == "stop" for one in results] == [True] * 2


def test_a_second_ctrl_c_ends_it_and_says_so() -> None:
    with served() as process:
        asking = Asking(started(process), 2000)
        asking.start()
        eventually(asking.running)
        process.send_signal(signal.SIGINT)
        eventually(lambda: httpx.get(f"{asking.url}/ready", timeout=SAFETY).status_code == 503)
        process.send_signal(signal.SIGINT)
        assert process.wait(SAFETY) == 130
    asking.join(SAFETY)
    assert asking.reply is not None
    assert {one["finish_reason"] for one in asking.reply.json()["results"]} == {"cancelled"}
