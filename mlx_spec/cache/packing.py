"""``TokenPacking``: which tokens of a pass are computed, and where they stand in its rectangle."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby

import mlx.core as mx

from mlx_spec.cache.device import asks_dearly

# Queries that attention answers in the time that a call more of it takes: on two cores three at 160
# keys and one at 512 (docs/LOG.md).
CALL = 3
_BACK = 8  # so many groups of rows before one are looked at: a step's Python stays short


@dataclass(frozen=True, eq=False)
class QueryRun:
    """Neighbouring rows whose queries are asked together.

    Attributes:
        first, end: rows ``first .. end - 1``.
        width: queries of each.
        index: [end - first, width] int32, which tokens they are.
    """

    first: int
    end: int
    width: int
    index: mx.array


@dataclass(frozen=True, eq=False)
class TokenPacking:
    """Which tokens of a pass of B rows are computed, of the rectangle of N tokens each.

    Attributes:
        places: [M] int32, where each token stands in the rectangle, read row by row.
        index: [B, N] int32, the token at each place; where a row has none there, its last one.
        rows: whose each of the M tokens is, as numbers.
        columns: where it stands among those of its row, likewise.
        runs: how queries are asked.
        order: [M] int32, where each token's answer is among those of all runs, in their order.
        told: [M] int32, whose each token is, where only the device knows that (``filled``): then
            ``rows`` and ``columns`` are empty.
    """

    places: mx.array
    index: mx.array
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    runs: tuple[QueryRun, ...]
    order: mx.array
    told: mx.array | None = None

    @classmethod
    def of(cls, counts: Seq[int], tokens: int, call: int = CALL) -> TokenPacking:
        """Of rows that bring so many tokens each, at least one, ``tokens`` in all or more.

        Args:
            counts: tokens of each row.
            tokens: of the pass; those beyond are copies of the first.
            call: queries that cost as much as asking once more; on a GPU all ask together.
        """
        width, places, index = max(counts), list[int](), list[list[int]]()
        rows, order, runs = list[int](), list[int](), list[QueryRun]()
        for row, count in enumerate(counts):
            first = len(places)
            index.append([first + min(column, count - 1) for column in range(width)])
            places += range(row * width, row * width + count)
            rows += [row] * count
        asked = 0
        together = [(0, len(counts), width)] if asks_dearly() else _runs(counts, call)
        for first, end, wide in together:
            own = mx.array([line[:wide] for line in index[first:end]], mx.int32)
            runs.append(QueryRun(first, end, wide, own))
            for row in range(first, end):
                order += range(asked, asked + counts[row])
                asked += wide
        more = [0] * (tokens - len(places))
        return cls(
            mx.array(places + more, mx.int32),
            mx.array(index, mx.int32),
            (*rows, *more),
            (*(column for count in counts for column in range(count)), *more),
            tuple(runs),
            mx.array(order + more, mx.int32),
        )

    @property
    def size(self) -> int:
        """Tokens of the pass, M."""
        return self.places.shape[0]

    @property
    def whose(self) -> mx.array:
        """[M] int32: whose each token is."""
        return mx.array(self.rows, mx.int32) if self.told is None else self.told

    @property
    def whole(self) -> QueryRun:
        """All rows at once."""
        count, width = self.index.shape
        return QueryRun(0, count, width, self.index)

    def of_rows(self, rows: Seq[int]) -> tuple[mx.array, mx.array]:
        """[m] int32, the tokens of some rows; [b, N] int32, of each of their places its token among
        these."""
        width = self.index.shape[1]
        tokens, index = list[int](), list[list[int]]()
        for row in rows:
            first, count = self.rows.index(row), 1
            while self.columns[first + count : first + count + 1] == (count,):
                count += 1
            begin = len(tokens)
            index.append([begin + min(column, count - 1) for column in range(width)])
            tokens += range(first, first + count)
        return mx.array(tokens, mx.int32), mx.array(index, mx.int32)

    def packed(self, rectangle: mx.array) -> mx.array:
        """[M, ...] of [B, N, ...]."""
        return mx.take(rectangle.flatten(0, 1), self.places, axis=0)

    def spread(self, tokens: mx.array) -> mx.array:
        """[B, N, ...] of [M, ...]."""
        return mx.take(tokens, self.index, axis=0)


def spread_heads(tokens: mx.array, index: mx.array) -> mx.array:
    """[b, H, n, D] of [M, H, 1, D], by which token stands at each of [b, n] places."""
    count, heads, _, dims = tokens.shape
    # As one stretch of numbers a token, which is copied as such.
    spread = mx.take(tokens.reshape(count, heads * dims), index, axis=0)
    return mx.unflatten(spread, -1, (heads, dims)).swapaxes(1, 2)


def _runs(counts: Seq[int], call: int) -> list[tuple[int, int, int]]:
    """First row, end and width of the runs of rows that cost least: a call each, and holes."""
    groups, begin = [(0, 0)], 0  # where groups of equal rows end, and how wide each is
    for count, equal in groupby(counts):
        begin += len(list(equal))
        groups.append((begin, count))
    best: list[tuple[int, int, int]] = [
        (0, 0, 0)
    ]  # cost up to a group, where its run begins, width
    for place in range(1, len(groups)):
        width, end, found = 0, groups[place][0], (1 << 60, 0, 0)
        for before in range(place - 1, max(-1, place - 1 - _BACK), -1):
            width = max(width, groups[before + 1][1])
            cost = best[before][0] + call + (end - groups[before][0]) * width
            found = min(found, (cost, before, width))
        best.append(found)
    runs, place = list[tuple[int, int, int]](), len(groups) - 1
    while place:
        _, before, width = best[place]
        runs.append((groups[before][0], groups[place][0], width))
        place = before
    return runs[::-1]
