"""One run of ``mlx-spec serve``: keys and port first, then the models, then requests."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mlx_spec.cli.notes import note, say_models, saying, status
from mlx_spec.errors import InvalidRequest
from mlx_spec.server.flags import ServeFlags
from mlx_spec.server.keys import ApiKeys
from mlx_spec.server.options import ServerOptions

if TYPE_CHECKING:
    from mlx_spec.server.service import Service

# A second signal ended it, as from a shell.
_GIVEN_UP = 130


def run_server(options: ServerOptions, flags: ServeFlags) -> int:
    """Serve until told to end; returns the exit code.

    Raises:
        InvalidRequest: the extra is missing, the port is taken, or there is no key where one is
            needed.
    """
    keys = ApiKeys.of(options, os.environ)
    _need_extra()
    from mlx_spec.server.app import make_app
    from mlx_spec.server.listening import HttpServer, allow_files, log_to, open_sockets

    allow_files(options.max_connections)
    sockets = open_sockets(options)
    say_models(flags)
    with ExitStack() as stack:
        for one in sockets:
            stack.callback(one.close)
        service = _open(flags, options, stack)
        log_to(note, options.log_level)
        app = make_app(service, options, keys)
        server = HttpServer(app, service, lambda: _say_started(service, sockets[0], bool(keys)))
        server.run(sockets)
        return _GIVEN_UP if server.given_up else int(server.broken)


def _open(flags: ServeFlags, options: ServerOptions, stack: ExitStack) -> Service:
    with status(f"loading {flags.target}"):
        from mlx_spec.pipeline.backend import Models
        from mlx_spec.server.opening import open_service

    models = Models(lambda text: status(text), saying(False))
    target, draft = models.pair(flags, drafting=True)
    return stack.enter_context(open_service(flags, options, target, draft))


def _say_started(service: Service, opened: socket.socket, keyed: bool) -> None:
    from mlx_spec.server.listening import address_of

    address = address_of(opened)
    note(f"serving {service.served.name} at {address}/v1{', with API keys' if keyed else ''}")
    note(f"a playground is at {address}/; Ctrl-C finishes what runs and ends")


def _need_extra() -> None:
    """Say what to install, before anything takes time.

    Raises:
        InvalidRequest: a package is missing.
    """
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        if find_spec(name) is None:
            raise InvalidRequest(f"[serve] needs {name}: pip install 'mlx-spec[server]'")
