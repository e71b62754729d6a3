"""Several processes on this machine that hold one model together, started as ``mlx.launch`` does.

Over MLX's ring: a file of addresses and a number for each process. Ports are the system's choice.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LONGEST = 600.0  # seconds; a safety net


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Launched:
    """Processes that were started.

    Attributes:
        processes: by rank.
    """

    processes: list[subprocess.Popen[str]]
    _folder: Any = field(default=None, repr=False)

    def wait(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each rank, once all have ended."""
        ended = []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=LONGEST)
                ended.append((process.returncode, out, err))
        finally:
            self.kill()
        return ended

    def first_says(self, words: str) -> str:
        """Wait until rank 0 says that on stderr; the line."""
        heard = []
        for line in self.processes[0].stderr or ():
            heard.append(line)
            if words in line:
                return line
        raise AssertionError((heard, self.wait()))

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def launch(
    count: int,
    *command: str,
    before: Callable[[int], dict[str, str]] = lambda rank: {},
    typed: str = "",
) -> Launched:
    """Start ``python *command`` so many times.

    Args:
        count: how many.
        command: what they run.
        before: gives more of a rank's environment.
        typed: stdin of rank 0; the others have an empty one.
    """
    folder = tempfile.TemporaryDirectory()
    hosts = Path(folder.name) / "hosts.json"
    said, nothing = Path(folder.name) / "typed", Path(os.devnull)
    said.write_text(typed)
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=(nothing if rank else said).open(),
            text=True,
            cwd=ROOT,
            env=os.environ
            | {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank), "MLX_SPEC_BLAS": "off"}
            | before(rank),
        )
        for rank in range(count)
    ]
    return Launched(processes, folder)
