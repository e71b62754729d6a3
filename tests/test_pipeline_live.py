"""Records on a pipe that stays open: a result leaves when it is there, not when the next comes."""

from __future__ import annotations

import queue
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.backend import Models
from mlx_spec.pipeline.failures import Failures
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.live import arriving
from mlx_spec.pipeline.process import process
from mlx_spec.pipeline.records import Record
from mlx_spec.pipeline.stage_runner import StageRunner
from mlx_spec.pipeline.stages.classify import Classify
from tests.test_cli_streams import ENVIRONMENT, command
from tests.test_stage_runner import Echo, FakeBackend


class Pipe:
    """What was sent comes, after that nothing, until it is closed."""

    def __init__(self) -> None:
        self._box: queue.Queue[Record | None] = queue.Queue()

    def send(self, number: int, text: str) -> None:
        self._box.put(Record(number, {"text": text}))

    def close(self) -> None:
        self._box.put(None)

    def __iter__(self) -> Iterator[Record]:
        while (record := self._box.get()) is not None:
            yield record


class Results:
    """A sink whose results can be waited for."""

    def __init__(self) -> None:
        self._box: queue.Queue[dict[str, Any]] = queue.Queue()

    def write(self, record: dict[str, Any]) -> None:
        self._box.put(record)

    def next(self) -> dict[str, Any]:
        return self._box.get(timeout=30)


@pytest.mark.parametrize("ordered", [True, False])
def test_each_result_comes_before_the_next_record_is_sent(ordered: bool) -> None:
    pipe, results = Pipe(), Results()
    runner = StageRunner(Echo(), FakeBackend(random.Random(1)), results, ordered=ordered)
    thread = threading.Thread(target=lambda: runner.run(arriving(pipe)))
    thread.start()
    for number, text in enumerate(["a", "odd", "b", "skip"], start=1):
        pipe.send(number, text)
        assert results.next()["_record"] == number
    pipe.send(5, "c")
    pipe.send(6, "d")
    pipe.close()
    assert {results.next()["_record"] for _ in range(2)} == {5, 6}
    thread.join(30)
    assert not thread.is_alive()


def test_labels_are_scored_without_waiting_for_more() -> None:
    """The scoring backend works in the caller's thread: it must be asked for what there is."""
    pipe, results = Pipe(), Results()

    class Output(Results):
        seed, failures = 0, Failures()

        def __contains__(self, number: int) -> bool:
            return number == 1  # done by an earlier run

        def begin(self) -> None: ...
        def finish(self, *, complete: bool) -> None: ...
        def close(self) -> None: ...

    output: Any = Output()
    output._box = results._box
    stage = Classify(labels=("red", "green"))
    done: list[Any] = []

    def work() -> None:
        done.append(process(stage, Flags(), arriving(pipe), output, Models(), limit=3))

    thread = threading.Thread(target=work)
    thread.start()
    for number in (1, 2, 3):
        pipe.send(number, f"text {number}")
        if number > 1:
            assert results.next()["_record"] == number
    thread.join(30)  # the limit ends it, although the pipe stays open
    pipe.close()
    assert done[0].tally.written == 2
    assert done[0].tally.skipped == 1


def test_an_error_of_the_input_comes_in_its_turn() -> None:
    def records() -> Iterator[Record]:
        yield Record(1)
        raise InvalidRequest("not UTF-16")

    found = (record for record in arriving(records()) if record is not None)
    assert next(found) == Record(1)
    with pytest.raises(InvalidRequest, match="not UTF-16"):
        next(found)


def test_no_more_is_read_ahead_than_said_and_the_reader_ends_with_the_walk() -> None:
    read: list[int] = []

    def records() -> Iterator[Record]:
        for number in range(1, 1000):
            read.append(number)
            yield Record(number)

    before = threading.active_count()
    found = arriving(records(), ahead=3)
    assert next(record for record in found if record is not None) == Record(1)
    found.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.endswith("(_read)"):
            thread.join(10)
    assert threading.active_count() <= before
    assert len(read) <= 6


def test_a_pipe_that_stays_open_does_not_hold_up_the_exit() -> None:
    """Stops python's abort at exit while a thread waits for stdin."""
    process = subprocess.Popen(
        command("-", "-", "-m", 2, "-q"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write('{"prompt": "def f"}\n')
    process.stdin.flush()
    assert '"_record": 1' in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read().startswith("mlx-spec: interrupted after")
    process.stdin.close()
