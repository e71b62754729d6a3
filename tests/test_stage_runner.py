"""The runner: order, bounded look-ahead, errors that stay with their record, seeds."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from mlx_spec.errors import GeneratorClosed, InvalidRequest
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage import Done, Generate, Request, Stage
from mlx_spec.pipeline.stage_runner import StageRunner, clean, record_seed
from mlx_spec.results import GenerationResult, GenerationStats


def result(text: str) -> GenerationResult:
    return GenerationResult(text, [1], "stop", 2, 1, 0.0, 0.0)


class FakePending:
    """An answer that comes when it is told to."""

    def __init__(self, text: str, seed: int) -> None:
        self.text, self.seed, self.come = text, seed, threading.Event()

    @property
    def done(self) -> bool:
        return self.come.is_set()

    def result(self, timeout: float | None = None) -> GenerationResult:
        if not self.come.wait(timeout):
            raise TimeoutError
        if self.text == "refused":
            raise InvalidRequest("can never fit")
        if self.text == "crash":
            raise RuntimeError("the worker is gone")
        return result(self.text.upper())


class FakeBackend:
    """Answers in random order, from a thread, as a generator does; keeps count."""

    def __init__(self, rng: random.Random, hold: int = 0) -> None:
        self.open: list[FakePending] = []
        self.all: list[FakePending] = []
        self.most = 0
        self._rng, self._hold, self._lock = rng, hold, threading.Lock()

    def submit(self, request: Generate, seed: int) -> FakePending:
        if request.prompt == "closed":
            raise GeneratorClosed("closed")
        if request.prompt == "":
            raise InvalidRequest("the prompt is empty")
        pending = FakePending(str(request.prompt), seed)
        self.all.append(pending)
        with self._lock:
            self.open.append(pending)
            self.most = max(self.most, len(self.open))
        threading.Timer(0.002, self._answer).start()
        return pending

    def _answer(self) -> None:
        with self._lock:
            self.open.pop(self._rng.randrange(len(self.open))).come.set()

    def stats(self) -> GenerationStats:
        return GenerationStats()


@dataclass(frozen=True)
class Echo(Stage):
    kind: ClassVar[str] = "echo"

    def prepare(self, fields: Mapping[str, Any]) -> Request:
        if fields["text"] == "skip":
            return Done({"skipped": True}, dropped=True)
        return Generate(fields["text"])

    def complete(self, fields: Mapping[str, Any], answer: GenerationResult) -> Done:
        if fields["text"] == "odd":
            raise ZeroDivisionError("a stage's own mistake")
        return Done({"output": answer.text})


def run(texts: list[str], **options: Any) -> tuple[list[dict[str, Any]], StageRunner, FakeBackend]:
    written: list[dict[str, Any]] = []

    class Sink:
        def write(self, record: dict[str, Any]) -> None:
            written.append(record)

    backend = FakeBackend(random.Random(1))
    runner = StageRunner(Echo(), backend, Sink(), **options)
    runner.run(Record(i, {"text": text}) for i, text in enumerate(texts, start=1))
    return written, runner, backend


def test_order_is_kept_although_answers_come_in_any() -> None:
    texts = [f"t{i}" for i in range(60)]
    written, runner, _ = run(texts, look_ahead=16)
    assert [record["_record"] for record in written] == list(range(1, 61))
    assert [record["output"] for record in written] == [text.upper() for text in texts]
    assert runner.tally.written == 60


def test_unordered_writes_each_once_as_it_comes() -> None:
    texts = [f"t{i}" for i in range(60)]
    written, _, _ = run(texts, look_ahead=16, ordered=False)
    numbers = [record["_record"] for record in written]
    assert sorted(numbers) == list(range(1, 61))
    assert numbers != sorted(numbers)
    assert all(record["output"] == record["text"].upper() for record in written)


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_is_read_than_the_look_ahead_allows(ordered: bool) -> None:
    """An input without end, or of ten million lines, never fills the memory."""
    read, written = 0, 0
    furthest = 0

    def records() -> Iterator[Record]:
        nonlocal read, furthest
        for number in range(1, 501):
            read += 1
            furthest = max(furthest, read - written)
            yield Record(number, {"text": f"t{number}"})

    class Sink:
        def write(self, record: dict[str, Any]) -> None:
            nonlocal written
            written += 1

    backend = FakeBackend(random.Random(2))
    StageRunner(Echo(), backend, Sink(), look_ahead=8, ordered=ordered).run(records())
    assert written == 500
    assert furthest <= 8
    assert backend.most <= 8


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_stays_with_its_record(ordered: bool) -> None:
    texts = ["a", "refused", "", "odd", "skip", "b"]
    written, runner, _ = run(texts, ordered=ordered)
    by_number = {record["_record"]: record for record in written}
    assert by_number[1]["output"] == "A"
    assert by_number[2]["error"] == "can never fit"
    assert by_number[3]["error"] == "the prompt is empty"
    assert by_number[4]["error"] == "ZeroDivisionError: a stage's own mistake"
    assert by_number[5] == {"text": "skip", "skipped": True, "_record": 5, "_dropped": True}
    assert by_number[6]["output"] == "B"
    assert (runner.tally.written, runner.tally.failed, runner.tally.dropped) == (6, 3, 1)


@pytest.mark.parametrize(("text", "kind"), [("crash", RuntimeError), ("closed", GeneratorClosed)])
def test_the_end_of_the_generator_is_no_record_s_error(text: str, kind: type[Exception]) -> None:
    """Else a crash would mark every record left as done and failed."""
    with pytest.raises(kind):
        run(["a", text, "b"])


def test_seeds_follow_from_seed_and_number_alone() -> None:
    _, _, backend = run(["a", "b", "c"], seed=7)
    seeds = [pending.seed for pending in backend.all]
    assert seeds == [record_seed(7, number) for number in (1, 2, 3)]
    assert len({record_seed(s, n) for s in range(30) for n in range(30)}) == 900
    assert all(2**32 < seed < 2**53 for seed in seeds)  # 32 bits make pairs of 100,000 records


def test_what_an_earlier_run_added_about_itself_is_taken_off() -> None:
    ours = {"a": 1, "error": "old", "_failed": True, "_record": 3, "_finish_reason": "stop"}
    assert clean(ours) == {"a": 1}
    theirs = {"a": 1, "error": "a field of the user's", "_finish_reason": "also"}
    assert clean(theirs) == theirs
    assert clean({**theirs, "_record": 3}) == {"a": 1, "error": "a field of the user's"}
    table_row = {"a": 1, "error": None, "_failed": None, "_record": 3}
    assert clean(table_row) == {"a": 1}
