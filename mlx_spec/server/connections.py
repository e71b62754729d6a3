"""``Connection``: HTTP/1.1 as uvicorn speaks it by ``h11``, with bounds that it does not have.

A caller that says nothing, or a header line a minute, is let go, and one that reads nothing of a
long answer; so is one connection too many. What is no HTTP, or a head without an end, is told so.
``h11`` is named, and not what uvicorn would choose where ``httptools`` is installed: that one's
heads have no bound.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.refusals import Refused, fault_body, refused

# Bytes of a request's line and headers. h11 looks at its bound when it wants more than has come,
# so it is given no more than a piece at a time.
MOST_HEAD, PIECE = 32 * 1024, 8 * 1024


class Connection(H11Protocol):
    """One connection; made by uvicorn."""

    patience: ClassVar[float]
    most: ClassVar[int]
    count: ClassVar[Callable[[Fault], Fault]]
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take it, if there is room; the request is awaited for a while."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._say(refused(503, "too many connections are open", "too_many_connections", 1.0))
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the time for its head runs from the first one on."""
        for begin in range(0, len(data), PIECE):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + PIECE])
        if self._between:
            self._watch()
        else:
            self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or its head is too long."""
        # Called where h11's error is handled, which says which of the two.
        if getattr(sys.exc_info()[1], "error_status_hint", 400) == 431:
            self._say(refused(431, f"the head of a request has more than {MOST_HEAD} bytes"))
        else:
            self._say(refused(400, "this is no HTTP request that can be read"))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._unwatch()
        self._reader_moves()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader takes nothing: it is waited for, but not for ever."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.patience, self._cut_off)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._reader_moves()

    def on_response_complete(self) -> None:
        """An answer was written; a connection that ends with it need not be read for ever."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.patience, self.transport.abort)
        elif self._between and self.conn.trailing_data[0]:  # the next head has begun
            self._watch()

    @property
    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.patience, self._give_up)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reader_moves(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _cut_off(self) -> None:
        words = f"the reader has stood still for {self.patience:g} s"
        type(self).count(refused(408, words, "slow_reader").fault)
        self.transport.abort()

    def _give_up(self) -> None:
        self._timer = None
        if not self._between or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:  # else nothing was asked
            words = f"the head of the request did not come in within {self.patience:g} s"
            self._say(refused(408, words))
        self.transport.close()

    def _say(self, refusal: Refused) -> None:
        """Answer what is no request, count it, and end the connection.

        Where another answer is being written, that is cut off: it may be what is not understood.
        """
        fault, cycle = type(self).count(refusal.fault), self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self._between or not cycle.response_started:
            body = json.dumps(fault_body("/", fault)).encode()
            after = b"Retry-After: 1\r\n" if fault.retry_after else b""
            self.transport.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"%bConnection: close\r\n\r\n%b"
                % (fault.status, HTTPStatus(fault.status).phrase.encode(), len(body), after, body)
            )
        self.transport.close()


def connection_class(
    options: ServerOptions, count: Callable[[Fault], Fault] = lambda fault: fault
) -> type[Connection]:
    """The class of a server's connections; ``count`` hears of what is refused before any route."""
    bounds = {"patience": options.read_timeout, "most": options.max_connections}
    return type("_Connection", (Connection,), {**bounds, "count": staticmethod(count)})
