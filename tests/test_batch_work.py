"""Jobs of the Batch API without a model: each record once, whatever ends the server or the job."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.stage import Respond
from mlx_spec.server.batch_job import ENDED, BatchJob
from mlx_spec.server.batch_shelf import BatchShelf
from tests.batch_support import (
    SAFETY,
    URL,
    Answers,
    Held,
    lines,
    requests,
    start,
    told,
    undisturbed,
    until,
    working,
)
from tests.test_store import Clock, open_shelf


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shelf(tmp_path: Path, clock: Clock) -> BatchShelf:
    return open_shelf(tmp_path / "store", clock)


def test_a_job_from_its_beginning_to_its_end(shelf: BatchShelf) -> None:
    answers = Answers()
    with working(shelf, answers):
        name = start(shelf, requests(10), metadata={"a": "b"})
        job = until(shelf, name, *ENDED)
    assert job.status == "completed"
    assert (job.total, job.completed, job.failed) == (10, 10, 0)
    results = lines(shelf, job.output_file_id)
    assert told(results) == undisturbed(shelf, 10)
    assert not [key for one in results for key in one if key.startswith("_")]
    assert job.error_file_id is None
    shown = job.shown()
    for state in ("in_progress", "finalizing", "completed"):
        assert shown[f"{state}_at"] == 1_000_000
    assert shown["metadata"] == {"a": "b"}
    known = shelf.files.about(str(job.output_file_id))
    assert (known["purpose"], known["filename"]) == ("batch_output", f"{name}_output.jsonl")
    # What an ended job needs no more is gone.
    assert [path.name for path in shelf.folder(name).iterdir()] == ["about.json"]


def test_failed_records_have_a_file_of_their_own(shelf: BatchShelf) -> None:
    class Some(Answers):
        def submit(self, request: Respond, seed: int) -> Held:
            if len(self.seeds) % 3 == 1:
                self.seeds.append(seed)
                raise InvalidRequest("not this one")
            return super().submit(request, seed)

    with working(shelf, Some()):
        job = until(shelf, start(shelf, requests(9)), *ENDED)
    assert (job.status, job.completed, job.failed) == ("completed", 6, 3)
    good, bad = lines(shelf, job.output_file_id), lines(shelf, job.error_file_id)
    assert {one["custom_id"] for one in [*good, *bad]} == {f"r{i}" for i in range(9)}
    for one in bad:
        assert one["response"]["status_code"] == 400
        assert one["error"]["message"] == "not this one"


@pytest.mark.parametrize(
    ("data", "code", "line"),
    [
        (requests(2) + b"\n" + requests(1), "duplicate_custom_id", 3),
        (requests(2) + b"\nnot json", "invalid_json_line", 3),
        (requests(1, "/v1/chat/completions"), "mismatched_url", 1),
        (b'{"custom_id": 5, "method": "POST"}', "invalid_custom_id", 1),
        (b'{"custom_id": "a", "method": "GET"}', "invalid_method", 1),
        (json.dumps({"custom_id": "a", "method": "POST", "url": URL}).encode(), "invalid_body", 1),
        (b"\n\n", "empty_file", None),
        (requests(101), "too_many_requests", None),
        ("{}".encode("utf-16-le"), "invalid_json_line", None),
    ],
)
def test_a_wrong_input_is_told_line_by_line(
    shelf: BatchShelf, data: bytes, code: str, line: int | None
) -> None:
    answers = Answers()
    with working(shelf, answers):
        job = until(shelf, start(shelf, data), *ENDED)
    assert job.status == "failed"
    (fault,) = job.shown()["errors"]["data"]
    assert (fault["code"], fault["line"]) == (code, line)
    assert answers.seeds == []
    assert job.output_file_id is job.error_file_id is None


@pytest.mark.parametrize("torn", [False, True])
def test_each_record_is_there_once_after_a_restart(
    shelf: BatchShelf, tmp_path: Path, clock: Clock, torn: bool
) -> None:
    first = Answers(left=5)
    with working(shelf, first) as leaving:
        name = start(shelf, requests(12))
        until(shelf, name, "in_progress", done=5)
        leaving.set()
    job = shelf.get(name)
    assert job.status == "in_progress"
    if torn:  # killed while it wrote
        with (shelf.folder(name) / "out.jsonl").open("ab") as file:
            file.write(b'{"id": "batch_req')
    shelf.store.close()
    again, second = open_shelf(tmp_path / "store", clock), Answers()
    with working(again, second):
        job = until(again, name, *ENDED)
    assert job.status == "completed"
    assert told(lines(again, job.output_file_id)) == undisturbed(again, 12)
    assert len(second.seeds) == 7  # the first five were not asked again


def test_a_torn_line_is_no_result_of_a_job_that_expired_meanwhile(
    shelf: BatchShelf, clock: Clock
) -> None:
    with working(shelf, Answers(left=2)) as leaving:
        name = start(shelf, requests(4))
        until(shelf, name, "in_progress", done=2)
        leaving.set()
    with (shelf.folder(name) / "out.jsonl").open("ab") as file:
        file.write(b'{"id": "batch_req')
    clock.now += 86_400
    with working(shelf, Answers()):
        job = until(shelf, name, *ENDED)
    assert (job.status, job.completed, job.failed) == ("expired", 2, 2)


def test_a_crash_while_results_are_made_leaves_no_third_file(
    shelf: BatchShelf, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is there, the job's last word is not: as after kill -9 between the two."""
    move = BatchShelf.move

    def killed(self: BatchShelf, name: str, status: str, **changes: Any) -> BatchJob:
        if status == "completed":
            raise GeneratorClosed("the process is gone")
        return move(self, name, status, **changes)

    monkeypatch.setattr(BatchShelf, "move", killed)
    with working(shelf, Answers()) as leaving:
        name = start(shelf, requests(4))
        until(shelf, name, "finalizing")
        leaving.set()
    monkeypatch.undo()
    shelf.store.close()
    clock.now += 86_400  # nor does it expire meanwhile: all of it was done
    again = open_shelf(tmp_path / "store", clock)
    with working(again, Answers()):
        job = until(again, name, *ENDED)
    assert job.status == "completed"
    assert told(lines(again, job.output_file_id)) == undisturbed(again, 4)
    assert len(again.files.all("batch_output")) == 1


def test_a_cancelled_job_keeps_what_is_done(shelf: BatchShelf) -> None:
    answers = Answers(left=3)
    with working(shelf, answers):
        name = start(shelf, requests(8))
        assert until(shelf, name, "in_progress", done=3).total == 8
        assert shelf.cancel(name).status == "cancelling"
        job = until(shelf, name, *ENDED)
    assert (job.status, job.completed, job.failed) == ("cancelled", 3, 5)
    assert [one["custom_id"] for one in lines(shelf, job.output_file_id)] == ["r0", "r1", "r2"]
    rest = lines(shelf, job.error_file_id)
    assert [one["custom_id"] for one in rest] == [f"r{i}" for i in range(3, 8)]
    assert {one["error"]["code"] for one in rest} == {"batch_cancelled"}
    assert shelf.get(name).shown()["cancelling_at"]
    with pytest.raises(InvalidRequest, match="is cancelled"):
        shelf.cancel(name)


def test_a_job_that_takes_too_long_expires(shelf: BatchShelf, clock: Clock) -> None:
    with working(shelf, Answers(left=2)):
        name = start(shelf, requests(6), completion_window="1h")
        until(shelf, name, "in_progress", done=2)
        clock.now += 3600
        job = until(shelf, name, *ENDED)
    assert (job.status, job.completed, job.failed) == ("expired", 2, 4)
    assert {e["error"]["code"] for e in lines(shelf, job.error_file_id)} == {"batch_expired"}


def test_a_job_whose_time_was_over_before_its_turn(shelf: BatchShelf, clock: Clock) -> None:
    name = start(shelf, requests(3), completion_window="1h")
    clock.now += 7200
    answers = Answers()
    with working(shelf, answers):
        job = until(shelf, name, *ENDED)
    assert (job.status, job.failed, answers.seeds) == ("expired", 3, [])


def test_the_input_may_be_deleted_meanwhile(shelf: BatchShelf) -> None:
    answers = Answers(left=1)
    with working(shelf, answers):
        name = start(shelf, requests(5))
        until(shelf, name, "in_progress", done=1)
        shelf.files.delete(shelf.get(name).input_file_id)
        answers.go_on()
        job = until(shelf, name, *ENDED)
    assert (job.status, job.completed) == ("completed", 5)


def test_a_full_disk_holds_a_job_up_and_loses_nothing(
    shelf: BatchShelf, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = Checkpoint.write, threading.Event()
    full.set()

    def no_room(self: Checkpoint, record: dict[str, Any]) -> None:
        if full.is_set() and record["_record"] == 3:
            from mlx_spec.errors import OutputError

            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError("[batch] out.jsonl: No space left on device") from error
        write(self, record)

    monkeypatch.setattr(Checkpoint, "write", no_room)
    with working(shelf, Answers()):
        name = start(shelf, requests(6))
        for _ in range(int(SAFETY / 0.01)):
            if shelf.shown(shelf.get(name))["errors"]:
                break
            threading.Event().wait(0.01)
        job = shelf.get(name)
        assert job.status == "in_progress"
        assert "No space left" in shelf.shown(job)["errors"]["data"][0]["message"]
        other = until(shelf, start(shelf, requests(2)), *ENDED)  # nobody else waits for it
        assert other.status == "completed"
        full.clear()
        clock.now += 61
        with shelf.changed:
            shelf.changed.notify_all()
        job = until(shelf, name, *ENDED)
    assert (job.status, shelf.shown(job)["errors"]) == ("completed", None)
    assert [one["custom_id"] for one in lines(shelf, job.output_file_id)] == [
        f"r{i}" for i in range(6)
    ]


def test_a_damaged_output_ends_the_job_in_words(shelf: BatchShelf) -> None:
    answers = Answers(left=2)
    with working(shelf, answers) as leaving:
        name = start(shelf, requests(4))
        until(shelf, name, "in_progress", done=2)
        leaving.set()
    (shelf.folder(name) / "out.jsonl").write_text("what is this\n")
    with working(shelf, Answers()):
        job = until(shelf, name, *ENDED)
    assert job.status == "failed"
    assert "was not written by this command" in job.shown()["errors"]["data"][0]["message"]


def test_an_engine_that_fails_leaves_the_job_for_the_next_start(shelf: BatchShelf) -> None:
    broken = Answers()
    broken.closed = True
    with working(shelf, broken):
        name = start(shelf, requests(3))
        for _ in range(int(SAFETY / 0.01)):
            if shelf.get(name).status == "in_progress":
                break
            threading.Event().wait(0.01)
    with working(shelf, Answers()):
        assert until(shelf, name, *ENDED).completed == 3


def test_jobs_take_their_turns(shelf: BatchShelf, clock: Clock) -> None:
    names = []
    for _ in range(3):
        names.append(start(shelf, requests(2)))
        clock.now += 1
    with working(shelf, Answers()):
        ended = [until(shelf, name, *ENDED) for name in names]
    times = [job.times["in_progress_at"] for job in ended]
    assert times == sorted(times)
    assert [job.id for job in shelf.all()] == names[::-1]
