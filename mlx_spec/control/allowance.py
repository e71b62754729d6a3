"""``Allowance``: seconds that may go into finding out, earned by those that go into work.

A long-lived server may look closer at what passes cost than who runs it once would wait for. So all
decoders of a model earn a small share of the time in which they step, and what is not known yet is
timed from that::

    step step step ... step | a look at one more width | step step ...
    1 ms of 100 earned each     spent: may be more than was earned, and is earned first then
"""

from __future__ import annotations


class Allowance:
    """What is left of it.

    Attributes:
        left: seconds; below zero where more was spent.
    """

    SHARE = 0.01  # of the time between steps
    LONGEST = 0.5  # seconds between two steps that are taken for work, not for a pause

    def __init__(self) -> None:
        self.left = 0.0
        self._last: float | None = None

    def earn(self, now: float) -> float:
        """A step begins at ``now``, in seconds; what may be spent."""
        if self._last is not None:
            self.left += self.SHARE * min(self.LONGEST, max(0.0, now - self._last))
        self._last = now
        return self.left

    def spend(self, seconds: float, now: float) -> None:
        """So much was spent until ``now``, which earns nothing."""
        self.left -= seconds
        self._last = now
