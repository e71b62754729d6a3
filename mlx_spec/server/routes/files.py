"""``/v1/files``: what is uploaded for batches, and what they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import StreamingResponse

from mlx_spec.server.batch_api import BatchApi
from mlx_spec.server.files import NewFile
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.pages import page
from mlx_spec.server.service import Service

_BLOCK = 2**16
STORE: dict[int | str, dict[str, Any]] = {
    400: {"description": "It can never be served; the message says why."},
    404: {"description": "There is no such thing."},
    413: {"description": "The file is too large."},
    503: {"description": "The store cannot be used."},
    507: {"description": "There is no room for it."},
}


def routes(service: Service, options: ServerOptions, api: BatchApi) -> APIRouter:
    """Upload, list, look at, read and delete."""
    router = APIRouter(tags=["batches"], responses=STORE)
    _add_upload(router, api)
    _add_reading(router, api)

    @router.delete("/v1/files/{name}")
    def delete(name: str) -> dict[str, Any]:
        """Take it away; a batch that reads it goes on."""
        with api.told() as shelf:
            shelf.files.delete(name)
        return {"id": name, "object": "file", "deleted": True}

    return router


def _add_upload(router: APIRouter, api: BatchApi) -> None:
    @router.post("/v1/files")
    def upload(
        file: Annotated[UploadFile, File()],
        purpose: Annotated[str, Form()],
        anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[int | None, Form(alias="expires_after[seconds]")] = None,
    ) -> dict[str, Any]:
        """Keep a file of JSON lines for a batch."""
        with api.told() as shelf:
            new = NewFile(file.filename or "file", purpose, seconds)
            return shelf.files.upload(new, file.file)


def _add_reading(router: APIRouter, api: BatchApi) -> None:
    @router.get("/v1/files")
    def files(
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        """What is kept, the latest first."""
        with api.told() as shelf:
            kept = shelf.files.all(purpose)
            return page(kept if order == "desc" else kept[::-1], after, limit)

    @router.get("/v1/files/{name}")
    def about(name: str) -> dict[str, Any]:
        """One file."""
        with api.told() as shelf:
            return shelf.files.about(name)

    @router.get("/v1/files/{name}/content", response_class=StreamingResponse)
    def content(name: str) -> StreamingResponse:
        """What is in it."""
        with api.told() as shelf:
            known, file = shelf.files.content(name)
        headers = {
            "Content-Length": str(known["bytes"]),
            # Whatever is in it, a browser must not take it for a page of ours.
            "Content-Disposition": f'attachment; filename="{name}.jsonl"',
            "X-Content-Type-Options": "nosniff",
        }
        return StreamingResponse(_blocks(file), 200, headers, "application/jsonl")


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK):
            yield block
