"""``FileShelf``: the files of ``/v1/files``, as callers know them.

A file is uploaded for a batch, or made by one. It goes at its time, or when it is deleted; a batch
that reads one has a link of its own to it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.store import CONTENT, FILES, NoSuchThing, Store, StoreFull
from mlx_spec.server.store_options import DAY, StoreOptions

UPLOADED, MADE = "batch", "batch_output"
_BLOCK = 2**20
_MOST_NAME = 255
LEAST_SECONDS, MOST_SECONDS = 3600, 30 * DAY  # as OpenAI has it


@dataclass(frozen=True)
class NewFile:
    """What is said of a file when it comes.

    Attributes:
        name: as its owner calls it; told again, and never a path.
        purpose: ``batch``, or ``batch_output`` of one that a batch made.
        seconds: how long it is kept; None for as long as any.
        id: its id where that was said before.
    """

    name: str
    purpose: str = UPLOADED
    seconds: int | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.purpose not in (UPLOADED, MADE):
            raise InvalidRequest(
                f"purpose is {self.purpose[:40]!r}; files are for batches here: 'batch'"
            )
        check_seconds(self.seconds, "expires_after")


def check_seconds(seconds: int | None, name: str) -> None:
    """Refuse a time to keep a file that is none.

    Raises:
        InvalidRequest: with the bounds.
    """
    if seconds is not None and not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise InvalidRequest(
            f"{name}.seconds is {seconds}, expected {LEAST_SECONDS}..{MOST_SECONDS}"
        )


class FileShelf:
    """Files in a store.

    Args:
        store: has them.
        options: limits.
        now: seconds of Unix time.
    """

    def __init__(
        self, store: Store, options: StoreOptions, now: Callable[[], float] = time.time
    ) -> None:
        self._store, self._options, self._now = store, options, now

    def upload(self, new: NewFile, source: BinaryIO) -> dict[str, Any]:
        """Keep what a caller sends.

        Raises:
            InvalidRequest: it is empty.
            StoreFull: there is no room for it, or there are too many files.
        """
        taken = self._store.all(FILES)
        if len(taken) >= self._options.max_files:
            raise StoreFull(f"{len(taken)} files are kept, at most {self._options.max_files}")
        room = self._options.max_store_bytes - sum(int(one["bytes"]) for one in taken)

        def fill(path: Path) -> None:
            size = 0
            with path.open("wb") as file:
                while block := source.read(_BLOCK):
                    size += len(block)
                    if size > room:
                        raise StoreFull(f"files may take {max(0, room)} bytes more, not this one")
                    file.write(block)
            if not size:
                raise InvalidRequest("the file is empty")

        return self.keep(new, fill)

    def keep(self, new: NewFile, fill: Callable[[Path], object]) -> dict[str, Any]:
        """Keep what ``fill`` writes."""
        name, created = new.id or self._store.new_id(FILES), int(self._now())
        days = self._options.store_days
        with self._store.making(FILES, name) as folder:
            fill(folder / CONTENT)
            known = {
                "id": name,
                "object": "file",
                "bytes": (folder / CONTENT).stat().st_size,
                "created_at": created,
                "expires_at": created + (new.seconds or days * DAY),
                "filename": _plain(new.name),
                "purpose": new.purpose,
                "status": "processed",
                "status_details": None,
            }
            self._store.note(folder, known)
        return known

    def about(self, name: str) -> dict[str, Any]:
        """What is known of a file.

        Raises:
            NoSuchThing: there is none, or its time is over.
        """
        known = self._store.about(FILES, name)
        if self._over(known):
            raise NoSuchThing(f"file {name!r} has expired")
        return known

    def all(self, purpose: str | None = None) -> list[dict[str, Any]]:
        """All of them, the latest first."""
        kept = [known for known in self._store.all(FILES) if not self._over(known)]
        return [known for known in kept if purpose in (None, known["purpose"])]

    def content(self, name: str) -> tuple[dict[str, Any], BinaryIO]:
        """A file and its bytes."""
        return self.about(name), self._store.open(name)

    def link(self, name: str, to: Path) -> None:
        """Let somebody have a file who reads it for long, whatever becomes of it."""
        with self._store.open(name) as file, to.open("wb") as copy:
            shutil.copyfileobj(file, copy, _BLOCK)

    def delete(self, name: str) -> None:
        """Take a file away."""
        self._store.delete(FILES, name)

    def sweep(self) -> None:
        """Take away those whose time is over."""
        for known in self._store.all(FILES):
            if self._over(known):
                with suppress(NoSuchThing):  # somebody was faster
                    self._store.delete(FILES, known["id"])

    def _over(self, known: Mapping[str, Any]) -> bool:
        return bool(known["expires_at"] <= self._now())


def _plain(name: str) -> str:
    """A name as it may be shown: without what moves a cursor, and of some length."""
    return "".join(letter for letter in name if letter.isprintable())[:_MOST_NAME] or "file"
