"""``OtherWidths``: now and then a pass is run as it is that is padded otherwise, or the other way.

What is padded away is not seen again, so nothing would say that it is the cheaper after all: the
passes that were timed had no caches, and one of them had bad luck. A pass of the other width costs
what the choice is thought to gain, so it may be looked at the oftener the less that is, and the
seldomer the oftener it was seen already::

    12 as 16, a gain of 51%   16 16 16 16 12 16 ....... (102 steps) 12 ....... (204 steps) 12
    32 as 40, said to gain 9% 40 40 40 40 32 40 .. (18 steps) 32 .. 32 32 32 ... 40 ... 32 32
                                                              steps have said: it does not
"""

from __future__ import annotations


class OtherWidths:
    """When passes of so many tokens are run in the other of two widths.

    Attributes:
        due: numbers of tokens whose next pass is.
    """

    FIRST = 4  # steps until the first look: by then the machine's speed is known
    SHARE = 0.005  # of the time of steps, which looking may cost; half of it: a step is in flight
    RAREST = 16  # times that wait

    def __init__(self) -> None:
        self.due: set[int] = set()
        self._waited: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def ran(self, own: int, loss: float, *, looked: bool, clean: bool) -> None:
        """A step needed ``own`` tokens.

        Args:
            loss: that the other width is thought to be, as a share of the pass's time.
            looked: whether it was that.
            clean: whether its time says something.
        """
        if looked:
            if own in self.due:
                self.due.discard(own)
                self._seen[own] = max(1, self._seen.get(own, 0) + clean)
            self._waited[own] = 0
            return
        self._waited[own] = self._waited.get(own, 0) + 1
        seen = min(self._seen.get(own, 0), self.RAREST)
        if self._waited[own] >= max(self.FIRST, seen * loss / self.SHARE):
            self.due.add(own)
