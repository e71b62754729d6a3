"""A stage over Ray: two nodes on this machine write what one process writes, whatever dies.

One Ray for the whole file: it takes seconds to start. Its second node is what ``ray start`` makes,
and does not live to the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.cli.main import main
from mlx_spec.pipeline import Flags, GenerateText, ray_cluster
from mlx_spec.pipeline.checkpoint import Checkpoint
from mlx_spec.pipeline.process import Outcome
from mlx_spec.pipeline.ray_process import RayOptions, process_over_ray
from mlx_spec.pipeline.records import Record, read_records
from tests.ray_nodes import SAFETY, Node, run, write_input


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
