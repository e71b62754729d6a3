"""``Ration``: how much of other rows' time guesses may take that they have nothing of.

Verified beside its row's own token a certain guess spares that row a step; but where a pass costs
by its tokens all rows of the step wait for it. So beside rows without guesses a step may take
longer only so seldom that they do not notice: what steps with guesses took beyond plain ones is a
debt, and a share of every step's time is paid for it::

    step    plain  plain  guesses  plain  plain  ...  plain  guesses
    debt      0      0     12 ms   11 ms  10 ms  ...    0

Meanwhile as many guesses are taken as were seen to cost nothing, which is looked for with what may
be owed: where all are free there is never a debt. Nothing is timed for it; what steps of so many
rows and guesses take is seen on the way.
"""

from __future__ import annotations

from collections import deque
from statistics import median


class Ration:
    """How many guesses the next step may hold beside rows that bring none."""

    SHARE = 0.02  # of all time; what is no more than that counts as nothing
    DEAR = 0.1  # beyond a plain step, from where on fewer guesses are worth a trial
    LATELY = 5  # steps whose median is a price, so that one disturbed step says nothing
    KNOWN = 2  # plain ones, before there is one
    # Of a plain step: the most that luck puts by, and the debt beyond which nothing is taken.
    SAVED, MOST = 0.25, 2.0
    KINDS = 256  # of steps that are remembered

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], deque[float]] = {}
        self._debt = 0.0

    def most(self, rows: int, offered: int) -> int:
        """Of so many guesses in all, for a step of so many rows, those that may be taken."""
        plain = self._price(rows, 0)
        if plain is None or self._debt > self.MOST * plain:
            return 0
        free = dear = 0
        for guesses in range(1, offered + 1):
            price = self._price(rows, guesses)
            if price is not None and price <= plain * (1 + self.SHARE):
                free, dear = guesses, 0
            elif price is not None and price > plain * (1 + self.DEAR):
                dear = dear or guesses
        if self._debt > 0:
            return free
        # Between what costs nothing and what does more may be free.
        return (free + dear) // 2 if dear > free + 1 else offered

    def observe(self, rows: int, guesses: int, seconds: float, *, clean: bool) -> None:
        """A step, with so many guesses in all; ``clean``: it did nothing else in its seconds."""
        if clean:
            if len(self._seen) >= self.KINDS:
                self._seen.clear()
            self._seen.setdefault((rows, guesses), deque(maxlen=self.LATELY)).append(seconds)
        plain = self._price(rows, 0)
        if plain is None:
            return
        if guesses:
            # A guess costs what a token does at most, but for its mask.
            dearest = plain * (1 + 2 * guesses / rows)
            price = self._price(rows, guesses) or plain * (1 + guesses / rows)
            self._debt += min(max(price, plain * (1 - self.SAVED)), dearest) - plain
        self._debt = max(self._debt - self.SHARE * plain, -self.SAVED * plain)

    def _price(self, rows: int, guesses: int) -> float | None:
        """Seconds of such steps lately; None where too few were seen."""
        seen = self._seen.get((rows, guesses), ())
        return median(seen) if len(seen) >= (1 if guesses else self.KNOWN) else None
