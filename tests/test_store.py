"""The store of files and batches: ids, crashes, full and damaged disks, limits, time."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import pytest

from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.server.batch_shelf import BatchShelf, NewBatch, TooManyBatches
from mlx_spec.server.files import FileShelf, NewFile
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.pages import page
from mlx_spec.server.store import FILES, NoSuchThing, Store, StoreFull, for_want_of_room


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shelf(tmp_path: Path, clock: Clock) -> BatchShelf:
    return open_shelf(tmp_path / "store", clock)


def open_shelf(folder: Path, clock: Clock, **options: int) -> BatchShelf:
    store, made = Store(folder), ServerOptions(**options)
    return BatchShelf(store, FileShelf(store, made, clock), made, clock)


def put(shelf: BatchShelf, data: bytes = b"{}\n", name: str = "in.jsonl") -> str:
    return str(shelf.files.upload(NewFile(name), io.BytesIO(data))["id"])


def test_a_file_comes_back_as_it_was(shelf: BatchShelf, clock: Clock) -> None:
    data = os.urandom(3 * 2**20)
    name = put(shelf, data)
    known, file = shelf.files.content(name)
    with file:
        assert file.read() == data
    assert known == shelf.files.about(name)
    assert (known["object"], known["bytes"], known["status"]) == ("file", len(data), "processed")
    assert (known["created_at"], known["expires_at"]) == (1_000_000, 1_000_000 + 30 * 86_400)
    shelf.files.delete(name)
    for gone in (shelf.files.about, shelf.files.content, shelf.files.delete):
        with pytest.raises(NoSuchThing):
            gone(name)
    assert shelf.files.all() == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "",
        "file-",
        "/etc/passwd",
        "file-../../../etc/passwd",
        "file-" + "0" * 24 + "/../../secret",
        "file-" + "0" * 24 + "\0",
        "file-" + "0" * 24 + "\n",
        "FILE-" + "0" * 24,
        "batch_" + "0" * 24,
        "file-" + "\u0660" * 24,
        "lock",
        "x" * 100_000,
    ],
)
def test_no_id_leads_out_of_the_store(shelf: BatchShelf, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "about.json").write_text('{"id": "x"}')
    for ask in (shelf.files.about, shelf.files.content, shelf.files.delete, shelf.get):
        with pytest.raises(NoSuchThing):
            ask(name)
    with pytest.raises(NoSuchThing):
        shelf.create(NewBatch(name, "/v1/completions"))
    assert (tmp_path / "secret" / "about.json").exists()


def test_names_of_callers_are_no_paths(shelf: BatchShelf, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "store" not in path.parts}
    for name in ("../../evil", "/etc/passwd", "a\0b", "\x1b[2J\n", "é" * 4000, ""):
        known = shelf.files.about(put(shelf, name=name))
        assert known["filename"].isprintable()
        assert len(known["filename"]) <= 255
    assert {path for path in tmp_path.rglob("*") if "store" not in path.parts} == before
    made = {path.name for path in (tmp_path / "store" / "files").iterdir()}
    assert all(name.startswith("file-") and len(name) == 29 for name in made)


def test_one_server_has_it(shelf: BatchShelf, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(OutputError, match="another server uses it"):
        Store(tmp_path / "store")
    name = put(shelf)
    shelf.store.close()
    assert open_shelf(tmp_path / "store", clock).files.about(name)["id"] == name


def test_limits(tmp_path: Path, clock: Clock) -> None:
    shelf = open_shelf(tmp_path, clock, max_store_bytes=100, max_files=3, max_batches=2)
    first = put(shelf, b"x" * 60)
    with pytest.raises(StoreFull, match="40 bytes more"):
        put(shelf, b"x" * 41)
    with pytest.raises(InvalidRequest, match="empty"):
        put(shelf, b"")
    put(shelf, b"x" * 30)
    put(shelf, b"x")
    with pytest.raises(StoreFull, match="at most 3"):
        put(shelf, b"x")
    shelf.files.delete(first)
    put(shelf, b"x" * 60)
    last = put_batches(shelf, 2)
    with pytest.raises(TooManyBatches, match="at most 2"):
        shelf.create(NewBatch(last, "/v1/completions"))
    # What was refused left nothing behind.
    assert not list(tmp_path.rglob(".*"))


def put_batches(shelf: BatchShelf, count: int) -> str:
    name = str(shelf.files.all()[0]["id"])
    for _ in range(count):
        shelf.create(NewBatch(name, "/v1/completions"))
    return name


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_there_was(shelf: BatchShelf, code: int, tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError(code, os.strerror(code))
            return super().read(2)

    put(shelf)
    with pytest.raises(StoreFull, match=os.strerror(code)) as refused:
        shelf.files.upload(NewFile("in.jsonl"), Full(b"xxxx"))
    assert for_want_of_room(refused.value)
    assert len(shelf.files.all()) == len(list((tmp_path / "store" / "files").iterdir())) == 1


def test_what_is_damaged_says_so_and_harms_nobody_else(shelf: BatchShelf, tmp_path: Path) -> None:
    good, bad = put(shelf), put(shelf)
    job = shelf.create(NewBatch(good, "/v1/completions"))
    for text in ("", "{", "[]", "{}", json.dumps({"id": good})):
        (tmp_path / "store" / "files" / bad / "about.json").write_text(text)
        (tmp_path / "store" / "batches" / job.id / "about.json").write_text(text)
        with pytest.raises(OutputError, match="damaged"):
            shelf.files.about(bad)
        with pytest.raises(OutputError, match="damaged"):
            shelf.get(job.id)
        assert [one["id"] for one in shelf.files.all()] == [good]
        assert shelf.all() == []
    (tmp_path / "store" / "batches" / job.id / "about.json").write_text(
        json.dumps({"id": job.id, "created_at": 1, "seed": 1})
    )
    with pytest.raises(OutputError, match="damaged"):
        shelf.get(job.id)


def test_a_store_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(OutputError, match=r"File exists|Not a directory"):
        Store(tmp_path / "store")


def test_a_crash_leaves_the_old_state_or_the_new_one(shelf: BatchShelf, tmp_path: Path) -> None:
    """What was half made or half deleted is swept at the next start."""
    name, folder = put(shelf), tmp_path / "store" / "files"
    for left in (".new-file-0", f".gone-{name}-1"):
        (folder / left).mkdir()
        (folder / left / "content").write_bytes(b"x")
    assert [one["id"] for one in shelf.files.all()] == [name]
    shelf.store.close()
    again = Store(tmp_path / "store")
    assert [path.name for path in folder.iterdir()] == [name]
    assert len(again.all(FILES)) == 1


def test_what_is_over_goes(shelf: BatchShelf, clock: Clock) -> None:
    short = str(shelf.files.upload(NewFile("a", seconds=3600), io.BytesIO(b"x"))["id"])
    name = put(shelf)
    job = shelf.create(NewBatch(name, "/v1/completions"))
    shelf.move(job.id, "failed")
    clock.now += 3600
    with pytest.raises(NoSuchThing, match="expired"):
        shelf.files.about(short)
    assert [one["id"] for one in shelf.files.all()] == [name]
    shelf.sweep()
    with pytest.raises(NoSuchThing, match="no file"):
        shelf.files.about(short)
    assert shelf.get(job.id).status == "failed"
    clock.now += 30 * 86_400
    shelf.sweep()
    assert shelf.all() == shelf.files.all() == []


@pytest.mark.parametrize("seconds", [0, -1, 3599, 30 * 86_400 + 1])
def test_times_have_bounds(seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="expected 3600"):
        NewFile("a", seconds=seconds)
    with pytest.raises(InvalidRequest, match="expected 3600"):
        NewBatch("a", "/v1/completions", seconds=seconds)


@pytest.mark.parametrize("window", ["", "24", "h", "0h", "-1h", "31d", "1e9h", "24 h", "999999d"])
def test_windows_have_bounds(window: str) -> None:
    with pytest.raises(InvalidRequest, match="completion_window"):
        NewBatch("a", "/v1/completions", window)


def test_pages() -> None:
    things = [{"id": str(number)} for number in range(5)]
    first = page(things, None, 2)
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (["0", "1"], True)
    second = page(things, first["last_id"], 3)
    assert ([one["id"] for one in second["data"]], second["has_more"]) == (["2", "3", "4"], False)
    assert page([], None, 3)["first_id"] is None
    with pytest.raises(InvalidRequest, match="not in this list"):
        page(things, "9", 3)
