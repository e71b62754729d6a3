"""``Timeline``: how long each work on the device took, without stopping the device.

Works run in the order in which they were launched: chunk, step, chunk, step. Each leaves a marker,
a tiny array that is there when it is done, and the host waits for one marker after the other::

    host     launch c, s                wait c     wait s
               |  |                        .          .
    device     [========= chunk ==========][== step ==]
               max(launch, end before)    end        end

So ``seconds = end - max(launch, end of the work before)``. A marker is a copy, never a handle to a
cache: that would make the next write copy the whole buffer (``cache.dense``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq

import mlx.core as mx

from mlx_spec.model.pace import Chunk, on_cpu

# Seconds; a wait that took less found the work done: when it ended is then not known.
NO_WAIT = 5e-5


class Timeline:
    """Works on one device, in launch order.

    Args:
        clock: seconds.
        at_once: whether chunks are told what they took as soon as it is known, or by ``tell``.

    Attributes:
        end: when the last work that was waited for was done.
        known: chunks that are still to be told what they took.
    """

    def __init__(self, clock: Callable[[], float], *, at_once: bool = True) -> None:
        self.end = 0.0
        self.known: list[Chunk] = []
        self._clock, self._at_once = clock, at_once
        self._chunks: deque[tuple[Chunk, float]] = deque()

    def add(self, chunk: Chunk, launched: float) -> None:
        """A chunk was launched."""
        self._chunks.append((chunk, launched))

    def rest(self) -> None:
        """The host itself has waited for everything but chunks: what comes next begins now."""
        if not self._chunks:
            self.end = self._clock()

    def wait(self) -> bool:
        """Wait for all chunks launched so far, and tell each its seconds.

        Returns:
            Whether the last one's end was seen as it happened, so that what comes after it can be
            timed.
        """
        seen = True
        while self._chunks:
            chunk, launched = self._chunks.popleft()
            asked = self._clock()
            mx.eval(chunk.marker)
            chunk.seconds = self.finish(launched)
            seen = chunk.exact = on_cpu() or self.end - asked > NO_WAIT
            self.known.append(chunk)
        if self._at_once:
            self.tell([(chunk.seconds, chunk.exact) for chunk in self.known])
        return seen

    def tell(self, took: Seq[tuple[float, bool]]) -> None:
        """Tell chunks the seconds that they took, and whether these are exact."""
        told, self.known = self.known, []
        for chunk, (seconds, exact) in zip(told, took, strict=True):
            chunk.seconds, chunk.exact = seconds, exact
            chunk.done(chunk)

    def finish(self, launched: float) -> float:
        """A work is done now; the seconds that it took."""
        begun, self.end = max(launched, self.end), self._clock()
        return self.end - begun
