"""``Store``: what ``/v1/files`` and ``/v1/batches`` keep, as files in one folder.

    STORE/lock                     held by the one server that uses it
    STORE/files/file-<hex>/        about.json, content
    STORE/batches/batch_<hex>/     about.json, input, out.jsonl

A thing is a folder under an id of ours; ids of callers are looked at before they become a path, and
names that callers give are kept inside ``about.json`` and never become one. Every change is a
rename, so that a crash leaves the old state or the new one; what a crash left half made begins
with a dot and is swept at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mlx_spec.errors import OutputError

FILES, BATCHES = "files", "batches"
_WORD = {FILES: "file", BATCHES: "batch"}
_PREFIX = {FILES: "file-", BATCHES: "batch_"}
_ID = {kind: re.compile(re.escape(prefix) + r"[0-9a-f]{24}") for kind, prefix in _PREFIX.items()}
_ABOUT, CONTENT = "about.json", "content"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoSuchThing(LookupError):
    """Nothing of that id is in the store."""


class StoreFull(OutputError):
    """There is no room: on the disk, or in what the store may take."""


class Store:
    """A folder of files and batches; one process at a time.

    Args:
        folder: made where it is not there.

    Raises:
        OutputError: the folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk("[store]"):
            for kind in _PREFIX:
                (folder / kind).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._held)
                raise OutputError(
                    "[store] another server uses it; give this one a --store of its own"
                ) from error
            for kind in _PREFIX:
                for left in (folder / kind).glob(".*"):
                    shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Let another server have it."""
        os.close(self._held)

    def new_id(self, kind: str) -> str:
        """An id that nobody can guess."""
        return f"{_PREFIX[kind]}{secrets.token_hex(12)}"

    def place(self, kind: str, name: str) -> Path:
        """The folder of a thing that is there.

        Raises:
            NoSuchThing: it is not.
        """
        if not _ID[kind].fullmatch(name) or not (path := self._folder / kind / name).is_dir():
            raise NoSuchThing(f"no {_WORD[kind]} {name[:64]!r}")
        return path

    def about(self, kind: str, name: str) -> dict[str, Any]:
        """What is known of a thing.

        Raises:
            NoSuchThing: it is not there.
            OutputError: what is written of it is damaged.
        """
        path = self.place(kind, name) / _ABOUT
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["id"] != name:
                raise ValueError("it is of something else")
        except FileNotFoundError as error:
            raise NoSuchThing(f"no {name!r} any more") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"[store] what is kept of {name} is damaged ({error})") from error
        return dict(known)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """What is known of all things, the latest first; damaged ones are left out."""
        found = []
        with disk("[store] listing"):
            names = os.listdir(self._folder / kind)
        for name in names:
            if _ID[kind].fullmatch(name):
                with suppress(NoSuchThing, OutputError):
                    found.append(self.about(kind, name))
        return sorted(found, key=lambda known: (known["created_at"], known["id"]), reverse=True)

    @contextmanager
    def making(self, kind: str, name: str) -> Iterator[Path]:
        """A folder for a new thing, which is there when the block ends without an error."""
        final = self._folder / kind / name
        partial = final.with_name(f".new-{name}")
        try:
            with disk(f"[store] {name}"):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(mode=0o700)
                yield partial
                if final.exists():  # made before, by who crashed after it
                    shutil.rmtree(final)
                os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def note(self, folder: Path, known: Mapping[str, Any]) -> None:
        """Write what is known of a thing, whole or not at all."""
        with disk(f"[store] {known['id']}"):
            partial = folder / f"{_ABOUT}.tmp"
            with partial.open("w", encoding="utf-8") as file:
                json.dump(known, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, folder / _ABOUT)

    def delete(self, kind: str, name: str) -> None:
        """Take a thing away, at once for everybody.

        Raises:
            NoSuchThing: it is not there.
        """
        path = self.place(kind, name)
        gone = path.with_name(f".gone-{name}-{secrets.token_hex(4)}")
        with disk(f"[store] {name}"):
            try:
                os.replace(path, gone)
            except FileNotFoundError as error:  # another caller was faster
                raise NoSuchThing(f"no {name!r} any more") from error
            shutil.rmtree(gone, ignore_errors=True)

    def open(self, name: str) -> BinaryIO:
        """A file's bytes.

        Raises:
            NoSuchThing: there is none of that id.
        """
        try:
            return (self.place(FILES, name) / CONTENT).open("rb")
        except FileNotFoundError as error:
            raise NoSuchThing(f"no {name!r} any more") from error


def for_want_of_room(error: BaseException | None) -> bool:
    """Whether an error came of a full disk, and may be gone once there is room."""
    while error is not None:
        if isinstance(error, StoreFull) or getattr(error, "errno", None) in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk(what: str) -> Iterator[None]:
    """What the disk says, as errors of ours.

    Raises:
        StoreFull, OutputError: in words.
    """
    try:
        yield
    except OSError as error:
        kind = StoreFull if error.errno in _FULL else OutputError
        raise kind(f"{what}: {error.strerror or error}") from error
