"""The web page at ``/``: the files of ``server/page``, read once, and nothing else by their names.

The page holds no data of the server, so it needs no key: it asks for one where the API wants one.
What a model writes may be hostile; the headers let a browser run only these files, show them in no
frame, talk to this server alone, and make no markup of any text (trusted types, none of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Asked for each time, mostly answered with 304: an upgraded server is an upgraded page.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page: its bytes, its type and the tag of its version."""

    content: bytes
    type: str
    tag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has this version."""
        headers = {**PAGE_HEADERS, "ETag": self.tag}
        known = (tag.strip() for tag in request.headers.get("if-none-match", "").split(","))
        if self.tag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.type)


def read_page() -> dict[str, PageFile]:
    """All files of the page by name."""
    page = {}
    for file in (files("mlx_spec.server") / "page").iterdir():
        if kind := _TYPES.get(file.name[file.name.rfind(".") :]):
            content = file.read_bytes()
            tag = f'"{blake2b(content, digest_size=12).hexdigest()}"'
            page[file.name] = PageFile(content, kind, tag)
    return page


def routes(service: Any, options: Any) -> APIRouter:
    """``/`` and ``/page/NAME``; neither is part of the API that the schema describes."""
    page = read_page()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return page["index.html"].answer(request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(name: str, request: Request) -> Response:
        if name not in page:
            raise HTTPException(404, f"the page has no file {name!r}")
        return page[name].answer(request)

    return router
