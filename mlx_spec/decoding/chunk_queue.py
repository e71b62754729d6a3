"""``ChunkQueue``: chunks of prompts that go to the device before the next step.

A chunk is described behind the step in flight and launched with the next one. Rows that decode wait
for one share of chunks a step, also where a step is dropped whose chunks were launched: those count
for the one that is built in its place::

    described       share taken           launched with
    [chunk c] ----> fed: describe no ---> [chunk c][step n + 1]
                    more before it            `- dropped: c stays, n + 1 is built again behind it
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from mlx_spec.decoding.timeline import Timeline
from mlx_spec.model.pace import Chunk, on_cpu


class ChunkQueue:
    """Chunks that are not launched yet, in their order. True while there are any.

    Args:
        timeline: hears when each is launched.
        clock: seconds.

    Attributes:
        fed: whether what rows wait for before the next step was described already.
    """

    def __init__(self, timeline: Timeline, clock: Callable[[], float]) -> None:
        self.fed = False
        self._timeline, self._clock = timeline, clock
        self._chunks: list[Chunk] = []
        self._sent = False  # whether any were launched since the last step was planned

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def add(self, chunks: Seq[Chunk]) -> None:
        """Chunks were described."""
        self._chunks += chunks

    def planned(self, reading: Chunk | None) -> None:
        """A step is planned: the share of the one after it is open again.

        Args:
            reading: what its drafter reads before it.
        """
        self.fed = False
        if reading is not None:
            self._chunks.append(reading)

    def keep(self) -> None:
        """No step is built this time; what was described is the share of the one that will be."""
        self.fed = bool(self._chunks)

    def undone(self) -> None:
        """The planned step is forgotten: what was described or launched for it counts for the
        next."""
        self.fed = self._sent or bool(self._chunks)

    def close(self) -> None:
        """Nothing more before the next tokens, where chunks were launched since the last ones."""
        self.fed = self._sent

    def launch(self, stopping: Callable[[], bool]) -> bool:
        """Launch all; whether they are on their way.

        Not where ``stopping`` says that nobody wants them any more.
        """
        self._sent = bool(self._chunks)
        while self._chunks:
            launched = self._clock()
            if not self._chunks[0].launch(stopping):
                return False
            self._timeline.add(self._chunks.pop(0), launched)
        if on_cpu():
            # async_eval computes most of a chunk before it returns: nothing is lost, and when the
            # chunk ended is known.
            self._timeline.wait()
        return True

    def clear(self) -> None:
        """Nobody wants what was described."""
        self._chunks.clear()
