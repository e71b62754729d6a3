"""Batches without a model: a backend that answers as far as it is let to, and what looks on."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlx_spec.errors import GeneratorClosed
from mlx_spec.pipeline.stage import Respond, Responded
from mlx_spec.pipeline.stage_runner import record_seed
from mlx_spec.results import GenerationResult, GenerationStats
from mlx_spec.server.api_records import ApiRecords
from mlx_spec.server.batch_job import BatchJob
from mlx_spec.server.batch_shelf import BatchShelf, NewBatch
from mlx_spec.server.batch_work import BatchWork
from mlx_spec.server.files import NewFile

URL = "/v1/completions"
SAFETY = 60.0


class Answers:
    """A backend without a model: answers with the seed, as far as it is let to.

    Attributes:
        seeds: of all that was asked.
        left: how many answers are given before it holds its breath; None for no end.
    """

    def __init__(self, left: int | None = None) -> None:
        self.left, self.seeds = left, list[int]()
        self.changed = threading.Condition()
        self.closed = False

    def submit(self, request: Respond, seed: int) -> Held:
        if self.closed:
            raise GeneratorClosed("closed")
        self.seeds.append(seed)
        return Held(self, seed)

    def go_on(self) -> None:
        with self.changed:
            self.left = None
            self.changed.notify_all()

    def stats(self) -> GenerationStats:
        return GenerationStats()


class Held:
    def __init__(self, owner: Answers, seed: int) -> None:
        self._owner, self._seed, self._given = owner, seed, False

    @property
    def done(self) -> bool:
        owner = self._owner
        if not self._given and (owner.left is None or owner.left > 0):
            self._given = True
            owner.left = None if owner.left is None else owner.left - 1
        return self._given

    def result(self, timeout: float | None = None) -> Responded:
        with self._owner.changed:
            if not self._owner.changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError
        result = GenerationResult("x", [1], "stop", 1, 1, 0.0, 0.0)
        return Responded({"seed": self._seed}, [result])


def requests(count: int, url: str = URL) -> bytes:
    lines = [
        json.dumps({"custom_id": f"r{i}", "method": "POST", "url": url, "body": {"prompt": "x"}})
        for i in range(count)
    ]
    return "\n".join(lines).encode()


@contextmanager
def working(shelf: BatchShelf, answers: Answers, rows: int = 4) -> Iterator[threading.Event]:
    """The thread runs in the block; the event is "the server leaves"."""
    leaving = threading.Event()

    def stage(job: BatchJob) -> ApiRecords:
        return ApiRecords(job.created_at, job.id)

    work = BatchWork(shelf, answers, stage, rows=rows, most=100, leaving=leaving.is_set)
    with work:
        yield leaving


def start(shelf: BatchShelf, data: bytes, **options: Any) -> str:
    name = shelf.files.upload(NewFile("in.jsonl"), io.BytesIO(data))["id"]
    return shelf.create(NewBatch(name, options.pop("url", URL), **options)).id


def until(shelf: BatchShelf, name: str, *states: str, done: int = 0) -> BatchJob:
    """Wait for a state, and for so many records."""
    woken = threading.Event()
    for _ in range(int(SAFETY / 0.01)):
        job = shelf.get(name)
        if job.status in states and job.completed >= done:
            return job
        woken.wait(0.01)
    raise AssertionError(f"{job.status}, {job.completed} completed, {job.errors}")


def lines(shelf: BatchShelf, name: str | None) -> list[dict[str, Any]]:
    if name is None:
        return []
    _, file = shelf.files.content(name)
    with file:
        return [json.loads(line) for line in file]


def undisturbed(shelf: BatchShelf, count: int) -> list[Any]:
    """What a job of so many records is answered with, but for the ids; by its seed."""
    job = shelf.all()[0]
    return [(f"r{i}", record_seed(job.seed, i + 1)) for i in range(count)]


def told(results: list[dict[str, Any]]) -> list[Any]:
    return [(one["custom_id"], one["response"]["body"]["seed"]) for one in results]
