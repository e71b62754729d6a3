"""Runs over Ray for tests: their input, and a node that can be lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from mlx_spec.cli.main import main

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
