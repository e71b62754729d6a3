"""How many tokens a request may come to hold, where it says so itself and where it does not.

A request with ``max_tokens`` reserves all of them when it comes. One without (``max_tokens=None``)
may go on to the end of the context, for which there is seldom room beside others. It reserves a
little beyond what it knows, and more as it comes near that; the last of those that run makes room
(``Scheduler.grow``). It ends by "length" where the context does, or all memory that there is::

    prompt      said        ahead
    |-----------|-----------|=========|............................|
                                      ^ reserved                   ^ the context's end, or as much
                                                                     as fits alone
"""

from __future__ import annotations

from collections.abc import Callable

from mlx_spec.batching.schedulable import Budget
from mlx_spec.sequence import Sequence

AHEAD = 512  # tokens beyond what a request knows that it reserves at once


class Reservations:
    """What requests reserve.

    Args:
        budget: what fits.
        margin: positions past a row's end that steps may still write to, by its guesses.
    """

    def __init__(self, budget: Budget, margin: Callable[[int], int]) -> None:
        self._budget, self._margin = budget, margin

    def first(self, request: Sequence) -> int:
        """Tokens to reserve when it comes; an open end is put where it can be reached at all."""
        known, margin = len(request.prompt), self._margin(request.guesses)
        whole = known + request.max_new_tokens + margin
        if not request.open_end or known + 1 + margin >= whole:
            return whole
        guesses = [request.guesses]
        if not self._budget.fits([whole], guesses):
            whole = self._most_alone(known + 1 + margin, whole, guesses)
            request.max_new_tokens = whole - margin - known
        return min(whole, known + margin + AHEAD)

    def next(self, request: Sequence) -> int | None:
        """Tokens to reserve from now on, where what it has may not last for another step."""
        whole, near = self._whole(request), 2 * self._margin(request.guesses)
        if not request.open_end or request.reserved >= whole:
            return None
        if request.length + near < request.reserved:
            return None
        ahead = max(AHEAD, request.length // 2)
        return min(whole, request.length + near + ahead)

    def close(self, request: Sequence) -> None:
        """It ends where what it has reserved does."""
        last = request.reserved - self._margin(request.guesses) - len(request.prompt)
        request.max_new_tokens = max(last, len(request.tokens) + 1)

    def _whole(self, request: Sequence) -> int:
        return len(request.prompt) + request.max_new_tokens + self._margin(request.guesses)

    def _most_alone(self, least: int, most: int, guesses: list[int]) -> int:
        """The largest number of tokens that fits alone, at least ``least``, below ``most``."""
        while least + 1 < most:
            middle = (least + most) // 2
            fits = self._budget.fits([middle], guesses)
            least, most = (middle, most) if fits else (least, middle)
        return least
