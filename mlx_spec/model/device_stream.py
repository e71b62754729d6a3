"""``DeviceStream``: where one decoder's MLX work is queued, whichever thread asks for it.

MLX gives every thread streams of its own, and what one thread described no other can compute. A
decoder therefore borrows a stream that belongs to no thread: it may be built by one thread and
stepped by others, in turn. MLX never destroys such a stream, so those given back are used again.

It also sees to it that the process ends cleanly: no step may be in flight, and no thread that did
MLX work be about to go, when the interpreter goes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

# Device -> streams that nobody uses. Only ever appended to and popped from: no lock, since a
# garbage collection may give a stream back at any moment, in any thread.
_FREE: dict[str, list[mx.Stream]] = {}
_ALL: list[mx.Stream] = []
# Threads that did MLX work, as the operating system numbers them.
_WORKERS: set[int] = set()


class DeviceStream:
    """A stream on the default device, given back when this object goes.

    The user sees to it that no two threads work on it at once.

    Attributes:
        stream: MLX's own.
    """

    def __init__(self) -> None:
        device = mx.default_device()
        free = _FREE.setdefault(str(device), [])
        try:
            self.stream = free.pop()
        except IndexError:
            self.stream = mx.new_thread_unsafe_stream(device)
            _ALL.append(self.stream)
        weakref.finalize(self, free.append, self.stream).atexit = False

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is described or computed within goes to this stream."""
        note_thread()
        with mx.stream(self.stream):
            yield

    def synchronize(self) -> None:
        """Wait until everything that was launched here is computed."""
        with self.work():
            mx.synchronize(self.stream)


def note_thread() -> None:
    """This thread does MLX work: the interpreter must not end under what it leaves behind."""
    _WORKERS.add(threading.get_native_id())


@atexit.register
def _finish() -> None:
    """Wait for steps in flight and for threads that are ending, each of which needs Python.

    A thread that was joined has still to run the destructors of MLX's own; if the interpreter is
    shutting down by then, the process ends with an abort.
    """
    for stream in _ALL:
        with contextlib.suppress(Exception):
            mx.synchronize(stream)
    ended = _WORKERS - {thread.native_id for thread in threading.enumerate()}
    if not os.path.isdir("/proc/self/task"):
        time.sleep(0.05 if ended else 0)  # no such list here (macOS); they take a millisecond
        return
    end = time.monotonic() + 1.0
    while time.monotonic() < end and any(os.path.exists(f"/proc/self/task/{n}") for n in ended):
        time.sleep(0.001)
