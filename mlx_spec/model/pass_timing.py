"""How long passes of a model take: timed once, for nobody, before anybody's request is decoded.

A pass here reads M tokens without caches, [M, 1]: dense layers, which are nearly all of a step, see
the same M rows of numbers as in a packed pass, and nothing is written that anybody could read. What
attention takes over the keys of long texts, and what is done to logits, steps say themselves
(``control.pass_costs``).

Time is short and passes of big models are long, so the coarse picture comes first, then what is
nearest to the rows that wait, then second looks where a point stands out. A point is the middle of
its looks, each compared with the round that it was part of (``control.looks``): the least would be
its own luckiest one, and points that are looked at oftener would be the luckier ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_spec.control.looks import combined

COARSE = (1, 2, 4, 8, 16, 32, 64, 128)
LOOKS = 3  # at each number of tokens, where time is left
ODD = 1.08  # a point that a wider one undercuts by that much is looked at again
UNLIKELY = 1.8  # times a wider pass that a narrower one takes at most: not padded then
ALL = 4  # points of a round that say how fast the machine was, where fewer may be what is odd
FEWEST = 2  # points that are timed whatever they take: with one nothing can be compared

Describe = Callable[[int], mx.array]
"""What computes a pass over so many tokens, described."""


@dataclass
class PassTimer:
    """Times passes until it has taken as long as it may.

    Attributes:
        until: seconds of the clock by which it is to be done.
        stopping: whether nobody wants it any more; asked between passes.
        clock: seconds.
        compiles: whether the first pass of each number of tokens is another, since the device may
            have kernels of its own for it, which are compiled or loaded then.
        looked: what was timed, by tokens.
    """

    until: float
    stopping: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.perf_counter
    compiles: bool = False
    looked: dict[int, list[float]] = field(default_factory=dict)

    def time(self, describe: Describe, order: Iterable[int]) -> dict[int, float]:
        """Seconds by tokens, of those in ``order`` that there was time for.

        Raises:
            Whatever the model does.
        """
        self.looked, wanted = {}, list(order)
        if not wanted:
            return {}
        mx.eval(describe(wanted[0]))  # the first is another: pages, caches, kernels
        self._round(describe, wanted)
        for _ in range(1, LOOKS):
            self._round(describe, self._odd())
        for turn in range(1, LOOKS):
            # There and back: a machine that grows slower meanwhile does so for all alike.
            back = turn % 2 and self._all_fit(wanted)
            self._round(describe, wanted[::-1] if back else wanted)
        rounds = [
            {tokens: spent[turn] for tokens, spent in self.looked.items() if len(spent) > turn}
            for turn in range(LOOKS)
        ]
        seen, _ = combined([one for one in rounds if one], ALL)
        if any(len(spent) < LOOKS for spent in self.looked.values()):
            # There was no time to look again at everything, and that much cannot be.
            least = {n: min(seen[wider] for wider in seen if wider >= n) for n in seen}
            seen = {n: min(spent, UNLIKELY * least[n]) for n, spent in seen.items()}
        return seen

    def _round(self, describe: Describe, wanted: Seq[int]) -> None:
        """One look at each, while there is time."""
        for tokens in wanted:
            if len(self.looked.get(tokens, ())) >= LOOKS or self.stopping():
                continue
            if len(self.looked) >= FEWEST and self.clock() + self._guess(tokens) > self.until:
                continue
            if self.compiles and tokens not in self.looked:
                mx.eval(describe(tokens))
            began = self.clock()
            mx.eval(describe(tokens))
            self.looked.setdefault(tokens, []).append(self.clock() - began)

    def _all_fit(self, wanted: Seq[int]) -> bool:
        """Whether there is time for a look at each."""
        if not self.looked:
            return False
        return self.clock() + sum(map(self._guess, wanted)) <= self.until

    def _guess(self, tokens: int) -> float:
        """What a pass should take, by those that were timed; a hiccup among them says nothing."""
        return min(
            min(spent) * max(1.0, 0.5 * (1 + tokens / other))
            for other, spent in self.looked.items()
        )

    def _odd(self) -> list[int]:
        """Points to look at again first: a wider pass takes less than they do, or a narrower one
        less by more than there are fewer tokens in it."""
        seen = {tokens: min(spent) for tokens, spent in self.looked.items()}
        return [
            tokens
            for tokens, spent in seen.items()
            if any(spent > ODD * least * max(1.0, tokens / n) for n, least in seen.items())
        ]


def order_of(
    edges: Seq[int],
    timed: Collection[int],
    most: int,
    present: tuple[int, int],
    *,
    sparing: bool = False,
) -> list[int]:
    """In which order to time what is not known yet.

    Args:
        edges: numbers of tokens that are wanted.
        timed: those that are known.
        most: tokens that a pass may take; one edge past it may be cheaper yet.
        present: fewest and most tokens of passes of the rows that wait.
        sparing: only what is coarse and not far, or theirs.
    """
    reached = [edge for edge in edges if edge <= most]
    reached += [edge for edge in edges if edge > most][:1]
    low, high = present

    def rank(edge: int) -> tuple[int, float]:
        if edge in COARSE and edge <= 4 * high:
            return 0, edge
        far = 0.0 if low <= edge <= high else max(low - edge, edge - high)
        return 1 + (edge > 4 * high), far

    if sparing:
        reached = [edge for edge in reached if rank(edge) <= (1, 0.0)]
    return sorted((edge for edge in reached if edge not in timed), key=rank)
