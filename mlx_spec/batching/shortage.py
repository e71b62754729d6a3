"""``Shortage``: what is done where the device has no memory for a step.

What rows may take is reckoned before they run, but other programs take memory, too. A step that
finds none leaves caches of which nobody knows what they hold. So the engine begins anew with empty
ones: what ran waits again and goes on from its tokens, and one request is given up, since the same
rows would want the same memory. For a while fewer rows run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence as Seq

from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import OutOfMemory
from mlx_spec.life_cycle import RequestState
from mlx_spec.row_limit import RowLimit
from mlx_spec.sequence import Sequence

# How MLX's allocators (CPU, Metal, CUDA) and Metal's queues say it; all by RuntimeError.
_WORDS = re.compile(
    r"unable to allocate|attempting to allocate|out ?of ?memory|insufficient memory"
    r"|resource limit",
    re.IGNORECASE,
)
# Steps without a shortage after which one row more may run.
CALM = 64


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that there is no memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


class Shortage:
    """How many rows may run since memory ran out.

    Args:
        limit: of the engine.
    """

    def __init__(self, limit: RowLimit) -> None:
        self._limit = limit
        self._wanted: int | None = None  # rows, once memory is there again
        self._calm = 0

    def error(self, rows: int) -> OutOfMemory:
        """What a step of so many rows has met."""
        return OutOfMemory(f"{OutOfMemory.WORDS} for a step of {rows} rows")

    def happened(self, running: Seq[Sequence]) -> Sequence:
        """Half of the rows must do for a while; who is given up, and told so.

        One whose prompt was being read, if there is one: it is what has changed. Of several the
        one that came last, which loses least.
        """
        rows, self._calm = len(running), 0
        self._wanted = self._wanted or self._limit.rows
        self._limit.rows = max(1, rows // 2)
        for one in running:
            one.share = None  # what it had in common with others was in the caches
        begun = [one for one in running if one.state is RequestState.PREFILLING]
        victim = max(begun or running, key=lambda one: (-one.claim, one.arrival))
        victim.fail(f"{self.error(rows)}, and this request was given up: try again later")
        return victim

    def over(self) -> None:
        """Nothing runs, or somebody has said how many rows there are."""
        if self._wanted is not None:
            self._limit.rows, self._wanted = self._wanted, None

    def set(self, rows: int) -> None:
        """So many are wanted."""
        self._limit.rows, self._wanted = rows, None

    def stepped(self) -> None:
        """A step has found its memory."""
        if self._wanted is None:
            return
        self._calm += 1
        if self._calm % CALM == 0:
            self._limit.rows += 1
            if self._limit.rows >= self._wanted:
                self._wanted = None


def renewed(old: SpeculativeDecoder, make: Callable[[], SpeculativeDecoder]) -> SpeculativeDecoder:
    """Another decoder that counts on. The caller drops the old one; its memory goes by then."""
    made = make()
    made.meter.go_on(old.meter)
    return made
