"""Trying kernels in a process of its own: one that hangs or crashes takes nobody along.

A kernel that was never run on a kind of machine may do anything there: raise, compute nonsense,
run forever, or end its process (MLX ends it where a command buffer fails). So a child process
tries them and tells every step on the way, and is ended when its time is up.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from metal_kernels.trials.judge import Followed, KernelVerdict, to_record

Command = Sequence[str]
# Of the time, what the child leaves for its last step.
_LAST_STEP = 0.15


def trial_command() -> Command | None:
    """The child; None where there is no Python to start (a program that was frozen)."""
    if getattr(sys, "frozen", False) or not sys.executable:
        return None
    return sys.executable, "-m", "metal_kernels.trials"


def try_kernels(
    verdicts: Iterable[KernelVerdict], seconds: float, command: Command
) -> tuple[KernelVerdict, ...]:
    """What is known of sites after at most so many seconds of trying what is left of them.

    Args:
        verdicts: what was known.
        seconds: from now, the child's start among them; then it is ended.
        command: the child, as :func:`trial_command` gives it.
    """
    verdicts = tuple(verdicts)
    followed, begin = Followed(verdicts), time.monotonic()
    asked = json.dumps(
        {
            "until": time.time() + (1 - _LAST_STEP) * seconds,
            "verdicts": [to_record(known) for known in verdicts],
        }
    )
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except OSError:
        return verdicts
    try:
        died = _listen(child, asked, followed, begin + seconds)
    finally:
        child.kill()
        child.wait()
    followed.stop(time.monotonic(), died)
    return followed.verdicts


def _listen(child: subprocess.Popen[str], asked: str, followed: Followed, end: float) -> str:
    """Hear what a child says until it is done or the time is up; how it died if it did."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(child, asked, lines.put), daemon=True).start()
    while (left := end - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return ""
        if line is None:
            code = child.wait(timeout=max(0.1, left))
            return "" if followed.ended else f"exit code {code}"
        try:
            followed.take(json.loads(line), time.monotonic())
        except (ValueError, KeyError, TypeError):
            continue  # somebody else's line: a library that prints
    return ""


def _read(child: subprocess.Popen[str], asked: str, put: Callable[[Any], None]) -> None:
    """Ask, and pass on all lines, then None; of a child that was ended too."""
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin as stdin:
            stdin.write(asked)
        for line in child.stdout:
            put(line)
    except (OSError, ValueError):
        pass
    finally:
        put(None)
