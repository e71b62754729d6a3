"""Which of several drafters that compute is in use: one at a time, since each costs passes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq


class Turns:
    """Compares drafters now and then, and stays with the best.

    Args:
        names: of the drafters.
        every: steps between two comparisons.

    Attributes:
        next: the one to be used from the next step on.
    """

    BETTER = 1.05  # what another must promise
    VISIT = 16  # comparisons after which one that was not used meanwhile is tried again

    def __init__(self, names: Seq[str], every: int) -> None:
        self._names, self._every = tuple(names), every
        self.next = names[0] if names else ""
        self._steps = 0
        self._unused = dict.fromkeys(names, 0)

    def step(self, promise: Callable[[str], float | None]) -> None:
        """One step more; ``promise`` says a drafter's tokens per second, None if nothing is known.

        One of which nothing is known has its turn first.
        """
        self._steps += 1
        if len(self._names) < 2 or self._steps % self._every:
            return
        for name in self._names:
            self._unused[name] += 1
        self._unused[self.next] = 0
        promised = {name: promise(name) for name in self._names}
        strange = [name for name, value in promised.items() if value is None]
        stale = [name for name, turns in self._unused.items() if turns >= self.VISIT]
        if strange or stale:
            self.next = (strange or stale)[0]
            return
        known = {name: value for name, value in promised.items() if value is not None}
        best = max(known, key=known.__getitem__)
        if known[best] > self.BETTER * known[self.next]:
            self.next = best
