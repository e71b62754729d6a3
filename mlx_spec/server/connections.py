"""``Connection``: HTTP/1.1 as uvicorn speaks it, with bounds that it does not have.

A caller that says nothing, or a header line a minute, is let go, and one that reads nothing of a
long answer; so is one connection too many.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_spec.server.options import ServerOptions

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b"
)
_WORDS = (
    b'{"error": {"message": "too many connections are open", '
    b'"type": "service_unavailable_error", "param": null, "code": "too_many_connections"}}'
)


class Connection(H11Protocol):
    """One connection; made by uvicorn."""

    patience: ClassVar[float]
    most: ClassVar[int]
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take it, if there is room; the request is awaited for a while."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_FULL % (len(_WORDS), _WORDS))
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the time for its head runs from the first one on."""
        super().data_received(data)
        if self._between:
            self._watch()
        else:
            self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._unwatch()
        self._reader_moves()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader takes nothing: it is waited for, but not for ever."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._reader_moves()

    def on_response_complete(self) -> None:
        """An answer was written; a connection that ends with it need not be read for ever."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.patience, self.transport.abort)

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

    def _give_up(self) -> None:
        self._timer = None
        if self._between and not self.transport.is_closing():
            self.transport.close()


def connection_class(options: ServerOptions) -> type[Connection]:
    """The class of a server's connections."""
    bounds = {"patience": options.read_timeout, "most": options.max_connections}
    return type("_Connection", (Connection,), bounds)
