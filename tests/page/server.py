"""A server that speaks the page's part of the API and says whatever a test writes for it.

The page's own files come from the real route; answers, faults and figures are the test's, so that
hostile texts, full servers and cut connections happen when they are wanted.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from mlx_spec.server.routes.page import routes

HOLD = object()  # go on once the gate is open
CUT = object()  # the connection is cut here
END = object()  # the answer ends here, without a last word
PATIENCE = 60

Said = tuple[str, str | None]  # a token's text and who guessed it


class PageServer:
    """What a test says and sees.

    Attributes:
        answers: of each prompt, tokens as (text, drafter), :data:`HOLD`, :data:`CUT`,
            :data:`END`, or an error's words; a prompt that is not here is said back.
        faults: (status, words, headers) for the next requests of answers.
        figures: what ``/v1/stats`` says.
        key: without which nothing is answered, or None.
        bodies: of all requests for answers.
        asked: how often figures were asked for.
        open: answers under way.
        gate: what :data:`HOLD` waits for.
    """

    def __init__(self) -> None:
        self.reset()
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def reset(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.faults: deque[tuple[int, str, dict[str, str]]] = deque()
        self.figures: dict[str, Any] = {
            "model": "pocket-1B",
            "uptime_s": 4000,
            "rows": {"running": 3, "size": 8},
            "queue": {"waiting": 2, "limit": 64},
            "throughput_tps": 123.4,
            "acceptance_rate": 0.61,
            "draft_tokens_per_step": 4.2,
            "drafters": {"ngram": {"drafted": 100, "accepted": 61, "acceptance_rate": 0.61}},
            "kv": {"bytes": 25_000_000, "bytes_limit": 1_000_000_000},
            "prefix": {"hits": 2, "reused_tokens": 77},
            "ttft_ms": {"p50": 120.0, "p95": 400.0},
            "itl_ms": {"p50": 9.5, "p95": 31.0},
            "requests": {"finished": 5, "cancelled": 0, "failed": 0, "refused": {"queue": 1}},
        }
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.asked = 0
        self.open = 0
        self.gate = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Listen at the port of before, at first at any."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(self._app(), log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        sockets = [listening]
        self._thread = threading.Thread(target=self._server.run, args=(sockets,), daemon=True)
        listening.listen()  # who comes before the loop runs waits
        self._thread.start()

    def stop(self) -> None:
        """Be gone, with all connections."""
        assert self._server is not None
        assert self._thread is not None
        self.gate.set()
        self._server.should_exit = True
        self._thread.join(PATIENCE)

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(routes(None, None))
        app.add_api_route("/v1/stats", self._stats)
        app.add_api_route("/v1/models", self._models)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        return app

    def _locked(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _fault(401, "no or a wrong API key", {})

    async def _stats(self, request: Request) -> Response:
        self.asked += 1
        return self._locked(request) or JSONResponse(self.figures)

    async def _models(self, request: Request) -> Response:
        listed = {"object": "list", "data": [{"id": self.figures["model"], "object": "model"}]}
        return self._locked(request) or JSONResponse(listed)

    async def _chat(self, request: Request) -> Response:
        if refused := self._locked(request):
            return refused
        self.bodies.append(await request.json())
        if self.faults:
            return _fault(*self.faults.popleft())
        prompt = self.bodies[-1]["messages"][-1]["content"]
        steps = self.answers.get(prompt, [(f"You said: {prompt}", None)])
        return StreamingResponse(self._stream(steps), media_type="text/event-stream")

    async def _stream(self, steps: list[Any]) -> AsyncIterator[str]:
        self.open += 1
        try:
            yield _event(_chunk({"role": "assistant", "content": ""}))
            for step in steps:
                if step is HOLD:
                    while not self.gate.is_set():
                        await asyncio.sleep(0.01)
                elif step is CUT:
                    raise ConnectionError("as the test wants it")
                elif step is END:
                    return
                elif isinstance(step, str):
                    yield _event({"error": {"message": step, "type": "server_error"}})
                else:
                    text, drafter = step
                    yield _event({**_chunk({"content": text}), "mlx_spec": {"drafter": drafter}})
            yield _event(_chunk({}, "stop"))
            yield _event({"choices": [], "usage": _usage(steps)})
            yield "data: [DONE]\r\n\r\n"
        finally:
            self.open -= 1


def _fault(status: int, words: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": {"message": words}}, status_code=status, headers=headers)


def _event(data: dict[str, Any]) -> str:
    return f": a comment\r\ndata: {json.dumps(data)}\r\n\r\n"


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _usage(steps: list[Any]) -> dict[str, Any]:
    said = [step for step in steps if isinstance(step, tuple)]
    accepted = sum(drafter is not None for _, drafter in said)
    details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": accepted}
    return {"completion_tokens": len(said), "completion_tokens_details": details}


@contextmanager
def page_server() -> Iterator[PageServer]:
    """One that runs."""
    server = PageServer()
    server.start()
    yield server
    server.stop()
