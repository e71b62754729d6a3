"""``HttpServer``: uvicorn, ended in order.

The first SIGTERM or Ctrl-C is the end of what is new: the door stays open and says 503, what runs
is finished, and the last answer is written before the process ends. The second one gives up what
runs.
"""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.connections import MOST_HEAD, connection_class
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.service import Service

_OTHER_FILES = 256  # beside connections: models, batches, what libraries hold
LOG = logging.getLogger("mlx_spec.server")
_LOGS = ("uvicorn.error", "uvicorn.access", "mlx_spec.server")


class HttpServer(uvicorn.Server):
    """Serves one application until it is told to end.

    Args:
        app: what answers.
        service: what is drained at the end.
        started: called when requests are taken.

    Attributes:
        given_up: whether it ended before what ran was finished.
        broken: whether it ended because its engine had failed.
    """

    def __init__(
        self, app: FastAPI, service: Service, started: Callable[[], object] = lambda: None
    ) -> None:
        options = service.options
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(options, service.count),
                h11_max_incomplete_event_size=MOST_HEAD,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level=options.log_level,
                access_log=options.log_level in ("debug", "info"),
                timeout_keep_alive=max(1, round(options.keep_alive_timeout)),
                server_header=False,
                proxy_headers=False,
            )
        )
        self._service, self._told = service, started
        self._signals = 0
        self.given_up = self.broken = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: end in order, or at once if it is not the first. Told in the main thread."""
        self._signals += 1
        if self.should_exit:  # even what is being written to slow readers is given up
            self.force_exit = True

    def drain(self) -> None:
        """As a first signal; from any thread."""
        self._signals = max(1, self._signals)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door."""
        await super().startup(sockets)
        if self.started:
            self._told()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end."""
        if self._signals:
            self._service.drain()
            if self._signals > 1 and self._service.outstanding:
                self.given_up = True
                self._service.cancel_all()
            if self._signals > 1 or not self._service.outstanding:
                self.should_exit = True
        elif not self._service.healthy:
            # Nothing can be answered any more; whoever watches the process starts another one.
            LOG.error("the engine has failed: %s", self._service.traffic.failure or "unknown")
            self.broken = self.should_exit = True
        return await super().on_tick(counter)


def open_sockets(options: ServerOptions) -> list[socket.socket]:
    """Sockets of all addresses that the host's name has; nobody is listened to yet.

    Raises:
        InvalidRequest: there is no such address, or the port is taken.
    """
    made: list[socket.socket] = []
    where = f"[serve] {options.host}:{options.port}"
    try:
        found = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"{where}: no such address ({error})") from error
    for family, kind, protocol, _, address in found if options.port else found[:1]:
        one = socket.socket(family, kind, protocol)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
        except OSError as error:
            one.close()
            for other in made:
                other.close()
            raise InvalidRequest(f"{where}: {error.strerror}; --port names another") from error
        made.append(one)
    return made


def allow_files(connections: int) -> None:
    """Let the process have so many connections, where the system starts it with fewer files.

    A Mac's shells allow 256.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def address_of(opened: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = opened.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_to(say: Callable[[str], None], level: str) -> None:
    """What the server logs, a line at a time; tracebacks of faults of ours follow theirs."""

    class _Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(self.format(record))

    handler = _Lines()
    for name in _LOGS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
