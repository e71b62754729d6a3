"""``GramPool``: which token comes after two others, and after one, as the target answered."""

from __future__ import annotations

from typing import NamedTuple


class Gram(NamedTuple):
    """The likeliest continuation.

    Attributes:
        token: the token.
        share: its share of the answers, newer ones weighing more.
        order: tokens before it that were looked at, 2 or 1.
    """

    token: int
    share: float
    order: int


class GramPool:
    """One request's n-grams, the oldest forgotten first."""

    MOST = 8192  # contexts
    BRANCHES = 4  # tokens after one
    FADING = 0.9  # what an answer weighs when the next one comes
    RUNNER_UP = 0.3  # what a runner-up weighs

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], dict[int, float]] = {}

    def add(self, before: int, last: int, answer: int, second: int) -> None:
        """The target said ``answer`` after these two tokens, and nearly ``second``."""
        for context in ((before, last), (last,)):
            weights = self._after.pop(context, None) or {}
            for token in weights:
                weights[token] *= self.FADING
            weights[answer] = weights.get(answer, 0.0) + 1.0
            weights[second] = weights.get(second, 0.0) + self.RUNNER_UP
            while len(weights) > self.BRANCHES:
                del weights[min(weights, key=weights.__getitem__)]
            self._after[context] = weights  # the newest is the last
        while len(self._after) > self.MOST:
            del self._after[next(iter(self._after))]

    def next(self, before: int, last: int) -> Gram | None:
        """What mostly came after both, or else after the last one."""
        for context in ((before, last), (last,)):
            weights = self._after.get(context)
            if weights:
                token = max(weights, key=weights.__getitem__)
                return Gram(token, weights[token] / sum(weights.values()), len(context))
        return None
