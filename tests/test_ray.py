"""A stage over Ray: two nodes on this machine write what one process writes, whatever dies.

One Ray for the whole file: it takes seconds to start. Its second node is what ``ray start`` makes,
and does not live to the end.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline import (
    Align,
    Classify,
    Filter,
    Flags,
    GenerateText,
    Stage,
    StructureText,
    ray_cluster,
)
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.process import Outcome
from mlx_spec.pipeline.ray_process import RayOptions, process_over_ray, together
from mlx_spec.pipeline.ray_worker import SecondTry
from mlx_spec.pipeline.records import Record, read_records
from mlx_spec.results import GenerationResult, GenerationStats

SAMPLED = ("--temp", "0.9", "--seed", "11", "-m", "8", "--batch-size", "2")
SAFETY = 300.0


def write_input(path: Path, count: int) -> Path:
    starts = ["def read_", "class Stack:", "import ", "for i in range(", "return self."]
    lines = [json.dumps({"prompt": f"# {i}\n{starts[i % 5]}", "id": i}) for i in range(count)]
    lines[3], lines[7] = "not json", '{"id": 7}'
    path.write_text("\n".join(lines) + "\n")
    return path


def run(source: Path, out: Path, *options: str) -> int:
    return main(["batch", str(source), str(out), "-q", *SAMPLED, *options])


# --- without Ray ----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "head", "head:", "10.0.0.1", "in.jsonl", "ray://head:1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(InvalidRequest, match="--ray"):
        ray_cluster.check_address(address)


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_addresses(address: str) -> None:
    ray_cluster.check_address(address)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ray-workers", "2"], "--ray-workers 2"),
        (["--ray", "--ray-workers", "0"], "--ray-workers 0"),
        (["--ray", "--performance-log", "x"], "not with --ray"),
        (["--ray", "ray://head:10001"], "--ray auto"),
        (["--ray", "--shard", "tensor"], "choose"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    source = write_input(tmp_path / "in.jsonl", 9)
    assert run(source, tmp_path / "out.jsonl", *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write_input(tmp_path / "in.jsonl", 9)
    assert run(source, tmp_path / "out.jsonl", "--ray") == 2
    assert "pip install 'mlx-spec[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stage",
    [
        GenerateText(prompt_template="{{ text }}"),
        Filter(question="{{ text }}?"),
        StructureText(),
        Classify(labels=("a", "b")),
        Align(policy="no"),
    ],
    ids=lambda stage: stage.kind,
)
def test_stages_travel_after_they_were_used(stage: Stage) -> None:
    """With templates compiled, which cannot."""
    fields = {"text": "x"}
    asked = stage.prepare(fields)
    again = pickle.loads(pickle.dumps(stage))
    assert again == stage
    assert again.prepare(fields) == asked


class _Once:
    """A backend whose first answer to each seed is an error."""

    def __init__(self, always: bool = False) -> None:
        self.seeds: list[int] = []
        self._always = always

    def submit(self, request: Any, seed: int) -> _Now:
        self.seeds.append(seed)
        return _Now("NaN" if self._always or self.seeds.count(seed) == 1 else None)

    def stats(self) -> GenerationStats:
        return GenerationStats()


class _Now:
    done = True

    def __init__(self, error: str | None) -> None:
        self._error = error

    def result(self, timeout: float | None = None) -> GenerationResult:
        reason: Any = "error" if self._error else "stop"
        return GenerationResult("x", [1], reason, 1, 1, 0.0, 0.0, error=self._error)


@pytest.mark.parametrize("look", [False, True])
def test_a_failed_record_is_asked_once_more(look: bool) -> None:
    for always in (False, True):
        backend = _Once(always)
        pending = SecondTry(backend).submit("prompt", 5)
        if look:
            assert pending.done
        answer = pending.result()
        assert isinstance(answer, GenerationResult)
        assert (answer.error is not None) == always
        assert backend.seeds == [5, 5]


def test_figures_of_workers_side_by_side() -> None:
    one = GenerationStats(generation_tokens=10, generation_time=2.0, draft_lengths={1: 3})
    two = GenerationStats(generation_tokens=30, generation_time=3.0, draft_lengths={1: 1, 2: 4})
    both = together({"a": one, "b": two})
    assert (both.generation_tokens, both.generation_time) == (40, 3.0)
    assert both.draft_lengths == {1: 4, 2: 4}
    assert together({}) == GenerationStats()


# --- over two nodes, a worker on each ---------------------------------------------------------


class Node:
    """A node of the cluster that can be lost.

    Attributes:
        id: Ray's.
    """

    def __init__(self) -> None:
        import ray

        address = ray.get_runtime_context().gcs_address
        before = {node["NodeID"] for node in ray.nodes()}
        command = [str(Path(sys.executable).parent / "ray"), "start", "--address", address]
        command += ["--num-cpus", "1", "--object-store-memory", str(80 * 2**20), "--block"]
        self._started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )
        until = time.monotonic() + SAFETY
        while not (new := {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before):
            assert self._started.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        (self.id,) = new

    def workers(self) -> list[int]:
        """Process ids of the workers on it."""
        return [pid for pid, name in self._processes() if "RayWorker" in name]

    def lose(self) -> None:
        """All of its processes at once, as with its power."""
        for pid, _ in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._started.wait(SAFETY)

    def _processes(self) -> list[tuple[int, str]]:
        return below(self._started.pid)


def below(root: int) -> list[tuple[int, str]]:
    """A process and all that it began: ids and commands."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [
        (int(pid), int(parent), name) for pid, parent, name in (x.split(None, 2) for x in listed)
    ]
    ours, size = {root}, 0
    while len(ours) > size:
        size = len(ours)
        ours |= {pid for pid, parent, _ in rows if parent in ours}
    return [(pid, name) for pid, _, name in rows if pid in ours]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of our own, which the commands find and leave as it is."""
    with ray_cluster.joined("local", 1):
        yield


@pytest.fixture(scope="module")
def node(cluster: None) -> Iterator[Node]:
    """The second of its nodes."""
    made = Node()
    try:
        yield made
    finally:
        made.lose()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The input, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    source = write_input(folder / "in.jsonl", 40)
    assert run(source, folder / "out.jsonl") == 1
    return source, (folder / "out.jsonl").read_bytes()


OVER = ("--ray", "local", "--ray-workers", "2")


@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one(
    node: Node, alone: tuple[Path, bytes], tmp_path: Path
) -> None:
    source, bytes_alone = alone
    out = tmp_path / "out.jsonl"
    assert run(source, out, *OVER) == 1
    assert out.read_bytes() == bytes_alone


@pytest.mark.slow
def test_it_goes_on_where_one_process_stopped(
    cluster: None, alone: tuple[Path, bytes], tmp_path: Path
) -> None:
    """And one process where Ray stopped; a half-written line is cut off."""
    source, bytes_alone = alone
    out = tmp_path / "out.jsonl"
    assert run(source, out, "--limit", "9") == 1
    with out.open("ab") as file:
        file.write(b'{"prompt": "#')
    assert run(source, out, "--resume", "--limit", "20", *OVER) == 1
    assert out.read_bytes().count(b"\n") == 20
    assert run(source, out, "--resume") == 1
    assert out.read_bytes() == bytes_alone
    assert run(source, out, "--resume", *OVER) == 1  # nothing is left


def watched(source: Path, out: Path, heard: Callable[[], None]) -> Outcome:
    """A run that says when its first results are written."""
    told: list[bool] = []

    class Watched(Checkpoint):
        def write(self, record: dict[str, Any]) -> None:
            super().write(record)
            if not told:
                told.append(True)
                heard()

    flags = Flags(temp=0.9, seed=11, max_tokens=8, batch_size=2)
    output, read = Watched(out, "jsonl", {}, 11), partial(read_records, source, "jsonl")
    return process_over_ray(GenerateText(), flags, read, output, RayOptions("local", 2))


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(
    node: Node, alone: tuple[Path, bytes], tmp_path: Path
) -> None:
    """As soon as the first results are there one worker gets kill -9."""
    source, bytes_alone = alone
    out, killed = tmp_path / "out.jsonl", list[int]()

    def kill() -> None:
        killed.extend(node.workers())
        os.kill(killed[0], signal.SIGKILL)

    done = watched(source, out, kill)
    assert len(killed) == 1  # a worker on each node
    assert done.tally.written == 40
    assert out.read_bytes() == bytes_alone


def noted(source: Path, log: Path) -> Iterator[Record]:
    """Records, each with a mark in a file when it is read."""
    for record in read_records(source, "jsonl"):
        with log.open("ab") as file:
            file.write(b".")
        yield record


@pytest.mark.slow
def test_no_more_is_read_than_workers_have_room_for(node: Node, tmp_path: Path) -> None:
    """Records that were read and not written: four chunks for each that workers have under way."""
    source, log, held = tmp_path / "in.jsonl", tmp_path / "log", list[int]()
    source.write_text("".join(f'{{"prompt": "{place}"}}\n' for place in range(160)))

    class Counting(Checkpoint):
        def write(self, record: dict[str, Any]) -> None:
            held.append(log.stat().st_size - 1 - len(held))  # one: is anything left to do?
            super().write(record)

    output, read = Counting(tmp_path / "out.jsonl", "jsonl", {}, 1), partial(noted, source, log)
    flags = Flags(max_tokens=2, batch_size=1)
    process_over_ray(GenerateText(), flags, read, output, RayOptions("local", 2))
    workers, calls, chunk = 2, 2, flags.look_ahead // 2
    assert len(held) == log.stat().st_size - 1 == 160
    assert chunk < max(held) <= 4 * workers * calls * chunk < 160


CHAIN = """
input = "in.jsonl"
output = "{out}"
[options]
seed = 3
temp = 0.7
batch_size = 2
max_tokens = 6
[[stage]]
kind = "generate"
[[stage]]
kind = "filter"
field = "output"
must_match = "[aeiou]"
[[stage]]
kind = "generate"
prompt_template = "{{{{ output }}}}"
output_field = "more"
"""


@pytest.mark.slow
def test_a_chain_over_nodes_of_which_one_is_lost(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the first stage, with its worker and all that it held: no record is lost,
    and no byte is another. Its worker begins again on the node that is left."""
    write_input(tmp_path / "in.jsonl", 40)
    for name in ("alone", "over"):
        (tmp_path / f"{name}.toml").write_text(CHAIN.format(out=f"{name}.jsonl"))
    assert main(["pipeline", "run", str(tmp_path / "alone.toml"), "-q"]) == 1
    own, lost = Checkpoint.write, list[int]()

    def write(output: Checkpoint, record: dict[str, Any]) -> None:
        own(output, record)
        if not lost:
            lost.extend(node.workers())
            node.lose()

    monkeypatch.setattr(Checkpoint, "write", write)
    assert main(["pipeline", "run", str(tmp_path / "over.toml"), "-q", *OVER]) == 1
    assert len(lost) == 1
    for place in ("{}.jsonl", "{}.jsonl.stages/1-generate.jsonl"):
        alone, over = (tmp_path / place.format(name) for name in ("alone", "over"))
        assert over.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_line(
    cluster: None, alone: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    assert run(alone[0], out, "--model", "./nowhere", "--overwrite", *OVER) == 2
    told = capsys.readouterr().err
    assert "nowhere" in told
    assert "Traceback" not in told
    assert out.read_text() == "old\n"


@pytest.mark.slow
def test_the_example_joins_a_cluster_that_runs(cluster: None, tmp_path: Path) -> None:
    """By its address, from a process of its own; it compares the bytes itself."""
    import ray

    root = Path(__file__).parent.parent
    shutil.copytree(root / "examples" / "data", tmp_path / "data")
    script = shutil.copy(root / "examples" / "corpus_over_ray.sh", tmp_path)
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        ["sh", script],
        env={**os.environ, "PATH": scripts, "PYTHONPATH": str(root), "RAY": address},
        capture_output=True,
        text=True,
        timeout=SAFETY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same bytes\n"
    assert done.stderr.count("Records: 36 written") == 2
    assert ray.is_initialized()  # who joins a cluster does not end it
