"""``Guard``: who may ask. Everything is shut but for what is named here.

With keys, a request must bring one, wherever it goes. Without (only this machine can ask), web
pages are what must be kept out: a page of anybody's may send requests to localhost, and by DNS
rebinding read the answers. So a request that names another host, or comes from another origin, is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_spec.server.keys import ApiKeys
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.protocol.faults import Fault
from mlx_spec.server.refusals import fault_response, refused

# They hold no data: the page itself, which asks for the key, and what a supervisor looks at.
_PUBLIC = ("/", "/health", "/ready")
_PUBLIC_FOLDER = "/page/"
_LOCAL = ("localhost", "127.0.0.1", "::1")
# Each is looked through for each name that is asked for.
MOST_HEADERS = 100
# Where the guard leaves the priority that a key stands for.
PRIORITY = "mlx_spec.priority"


class Guard:
    """Middleware; refuses in the words of the path's API.

    Args:
        app: what is guarded.
        keys: who may ask; empty for everybody on this machine.
        options: the server's.
        count: called with each refusal.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, options: ServerOptions, count: Callable[[Fault], Fault]
    ) -> None:
        self._app, self._keys, self._count = app, keys, count
        self._hosts = {*_LOCAL, options.host, *options.allowed_host}
        self._any_host = not options.local
        self._origins = set(options.cors_origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        fault = self._fault(scope)
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await fault_response(scope["path"], self._count(fault))(scope, receive, send)

    def _fault(self, scope: Scope) -> Fault | None:
        headers = Headers(scope=scope)
        if len(headers) > MOST_HEADERS:
            words = f"the request has {len(headers)} headers, at most {MOST_HEADERS} are read"
            return refused(431, words).fault
        if not self._keys:
            return self._strange(headers)
        path, method = scope["path"], scope["method"]
        public = path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)
        if public and method in ("GET", "HEAD"):
            return None
        for key in _given(headers):
            known, priority = self._keys.find(key)
            if known:
                scope[PRIORITY] = priority
                return None
        return refused(
            401, "an API key is needed: Authorization: Bearer KEY, or x-api-key: KEY"
        ).fault

    def _strange(self, headers: Headers) -> Fault | None:
        """Why a request without a key is no local program's or page's; None where it is."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._any_host and _name(host) not in self._hosts:
            return refused(
                403,
                f"this server does not go by the name {_name(host)!r}; --allowed-host says more",
            ).fault
        if origin is None or {"*", origin} & self._origins:
            return None
        if host is not None and urlsplit(origin).netloc == host:
            return None
        return refused(403, f"pages of {origin} may not ask; --cors-origin says which may").fault


def _given(headers: Headers) -> list[bytes]:
    """The keys that a request brings."""
    found = [headers.get("x-api-key", "")]
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(key.strip())
    return [key.encode("latin-1", "replace") for key in found if key]


def _name(host: str) -> str:
    """A host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
