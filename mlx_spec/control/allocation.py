"""The budget of a step: how many tokens it verifies, and whose guesses they are.

A step costs by the tokens M that the target verifies, not by rows and draft length. So the M - B
tokens beside the rows' own go to the guesses that are likeliest to stand anywhere in the batch,
and of all M (and numbers of passes K of a drafter that computes) the one with the most expected
tokens per second is taken::

    reaching       row a .90 .81 .73 .66      budget 5:  a a a b a    lengths 4 1 0
                   row b .70 .49 .34          budget 6:  a a a b a b          4 2 0
                   row c .10 .01                        (.90 .81 .73 .70 .66 .49)

A guess brings what it is likely to stand for, with all before it; that falls along a row, so the
greatest ones of all rows are beginnings of rows, and taking them one after the other is best for
every budget. A model whose passes are rectangles takes every row as far as its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import truediv


@dataclass(frozen=True)
class Prices:
    """What the steps to choose from cost.

    Attributes:
        verify: seconds of a pass over the rows' own tokens and 0, 1, 2, ... guesses, never falling.
        draft: seconds of drafting 0, 1, 2, ... guesses for all rows.
        packs: whether a pass takes any number of each row; else ``verify`` is read where all rows
            have the same.
    """

    verify: Seq[float]
    draft: Seq[float]
    packs: bool = True


@dataclass(frozen=True)
class StepBudget:
    """A step.

    Attributes:
        passes: of the drafter that computes, K.
        guesses: that are verified in all, M - B.
        tokens: expected, those of the target included.
        seconds: of the step.
    """

    passes: int
    guesses: int
    tokens: float
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def best_budget(reaching: Seq[Seq[float]], prices: Prices, without: int = 0) -> StepBudget:
    """The step with the most expected tokens per second that drafts.

    Args:
        reaching: for each row and guess, how likely it stands with all before it; as many as the
            row may use.
        prices: of steps.
        without: passes, of which no step is taken.

    Returns:
        A step with a draft where there is any that could be verified, else the plain one.
    """
    rows, draft = len(reaching), prices.draft
    best, speed = StepBudget(0, 0, float(rows), prices.verify[0] + draft[0]), 0.0
    each = _packed if prices.packs else _square
    pool: list[float] = []
    even = len(set(map(len, reaching))) == 1
    columns = list(zip(*reaching, strict=True)) if even else ()
    for passes in range(1, len(draft)):
        if even:
            column: Seq[float] = columns[passes - 1] if passes <= len(columns) else ()
        else:
            column = [row[passes - 1] for row in reaching if len(row) >= passes]
        # What a pass more brings at most, even if verifying it were free.
        if not column or sum(column) <= speed * (draft[passes] - draft[passes - 1]):
            break
        pool += column
        found = each(pool, passes, rows, prices)
        if found.speed > speed and passes != without:
            best, speed = found, found.speed
    return best


def spend(reaching: Seq[Seq[float]], passes: int, prices: Prices) -> StepBudget:
    """How much of what is there is best verified, after so many passes of a drafter: perhaps
    nothing of it.
    """
    rows = len(reaching)
    pool = list(chain.from_iterable(reaching))
    if prices.packs:
        return _packed(pool, passes, rows, prices)
    best = StepBudget(passes, 0, float(rows), prices.verify[0] + prices.draft[passes])
    for width in range(1, max(map(len, reaching)) + 1):
        pool = [chance for row in reaching for chance in row[:width]]
        seconds = prices.verify[rows * width] + prices.draft[passes]
        found = StepBudget(passes, rows * width, rows + sum(pool), seconds)
        if found.speed > best.speed:
            best = found
    return best


def fixed_budget(usual: Seq[Seq[float]], rows: int, prices: Prices) -> StepBudget:
    """The step with the most expected tokens per second where it is said beforehand how many
    guesses are verified, and only whose they are once they are seen.

    Args:
        usual: of rows as they were lately and each guess, how likely it stands with all before it;
            batches are made of these, which all have as many guesses.
        rows: in the batch.
        prices: of steps of a model that packs.
    """
    count, draft = len(usual), prices.draft
    batches = [
        [usual[(first + place) % count] for place in range(rows)] for first in range(0, count, rows)
    ]
    best, speed = StepBudget(0, 0, float(rows), prices.verify[0] + draft[0]), 0.0
    pools: list[list[float]] = [[] for _ in batches]
    for passes in range(1, len(draft)):
        columns = [[row[passes - 1] for row in batch] for batch in batches]
        more = sum(map(sum, columns)) / len(batches)
        if more <= speed * (draft[passes] - draft[passes - 1]):
            break
        pools = [sorted(pool + own, reverse=True) for pool, own in zip(pools, columns, strict=True)]
        tokens = float(rows)
        for guesses, chances in enumerate(zip(*pools, strict=True), 1):
            if guesses == len(prices.verify):
                break
            tokens += sum(chances) / len(batches)
            seconds = prices.verify[guesses] + draft[passes]
            if tokens > speed * seconds:
                best = StepBudget(passes, guesses, tokens, seconds)
                speed = best.speed
    return best


def worth(reaching: Seq[Seq[float]], verify: Seq[float], speed: float) -> tuple[int, float]:
    """How many of these guesses are verified, the likeliest first, where time is worth so many
    tokens per second (what the step usually brings, not what this one does), and what they bring.
    """
    pool = sorted(chain.from_iterable(reaching), reverse=True)
    tokens = list(accumulate(pool, initial=0.0))
    values = [gain - speed * seconds for gain, seconds in zip(tokens, verify, strict=False)]
    guesses = values.index(max(values))
    return guesses, tokens[guesses]


def _packed(pool: list[float], passes: int, rows: int, prices: Prices) -> StepBudget:
    """The best number of a pool's guesses; it is put in order, the likeliest first."""
    pool.sort(reverse=True)
    drafting = prices.draft[passes]
    tokens = list(accumulate(pool, initial=float(rows)))
    seconds = [verifying + drafting for verifying in prices.verify[: len(tokens)]]
    speeds = list(map(truediv, tokens, seconds))
    guesses = speeds.index(max(speeds))
    return StepBudget(passes, guesses, tokens[guesses], seconds[guesses])


def _square(pool: list[float], passes: int, rows: int, prices: Prices) -> StepBudget:
    """Every row as far as its neighbours."""
    seconds = prices.verify[rows * passes] + prices.draft[passes]
    return StepBudget(passes, rows * passes, rows + sum(pool), seconds)


def fill(reaching: Seq[Seq[float]], budget: StepBudget, first: Iterable[int]) -> list[int]:
    """Guesses of each row under a budget: those that are likeliest to stand.

    Args:
        reaching: as for :func:`best_budget`, cut to what may be verified.
        budget: how many in all.
        first: rows in the order in which they are served where guesses are equally likely; asked
            only then.
    """
    guesses = budget.guesses
    pool = sorted(chain.from_iterable(reaching), reverse=True)
    if len(pool) <= guesses:
        return [len(row) for row in reaching]
    if guesses <= 0:
        return [0] * len(reaching)
    least = pool[guesses - 1]
    if pool[guesses] < least:
        return [_until(row, least) for row in reaching]
    lengths = [_beyond(row, least) for row in reaching]
    left = guesses - sum(lengths)
    for row in first:
        if left <= 0:
            break
        equal = min(left, reaching[row].count(least))
        lengths[row] += equal
        left -= equal
    return lengths


def _until(row: Seq[float], least: float) -> int:
    """Guesses of a row that are no less likely; chances fall along it."""
    length = 0
    for chance in row:
        if chance < least:
            break
        length += 1
    return length


def _beyond(row: Seq[float], least: float) -> int:
    """Guesses of a row that are likelier."""
    length = 0
    for chance in row:
        if chance <= least:
            break
        length += 1
    return length
