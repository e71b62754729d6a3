"""The options of a batch's rows, as the host knows them and as the device reads them.

The host must know which rows are greedy and which filter, so that neither pays for the other; so
options come as Python numbers, once for as long as the batch stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import mlx.core as mx

from metal_kernels.noise import seed_words
from metal_kernels.sample_extras import Exclusion, MoreFilters

# Probabilities are ranked by their distance to the largest, in units of 2**-KEY_BITS octaves.
KEY_BITS = 19
LARGEST_KEY = 2**24 - 1
# The inverse of the one is still a float32; at the other all tokens are alike.
_COLDEST, _HOTTEST = 1e-38, 1e30
_COLDEST_BELOW_TOP = 1e-20  # where the best token may be excluded, so that others have scores
_UNLIMITED = 2**31 - 1
_TOP_P_ONE = 2**31

Own = TypeVar("Own", bound="Options")


@dataclass(frozen=True, eq=False)
class Options:
    """How rows sample, on the device; of shape [b], or [R, 1] where positions are rows too.

    Attributes:
        inverse_temperature: float32.
        top_p: int64 in units of 2**-31; more than one where the filter is off.
        top_k: int32, 2**31 - 1 where the filter is off.
        lowest: int32, the last key that min-p keeps.
        least: int32, tokens that min-p leaves in any case.
        filters: whether these rows filter.
        by_mass, by_count, by_least: some row has a top-p; a top-k; more than one token to leave.
        exclusion: XTC of rows that have it, where all do; their top-k is there.
    """

    inverse_temperature: mx.array
    top_p: mx.array
    top_k: mx.array
    lowest: mx.array
    least: mx.array
    filters: bool
    by_mass: bool
    by_count: bool
    by_least: bool
    exclusion: Exclusion | None

    @property
    def by_rank(self) -> bool:
        """Whether some row has a top-p or a top-k."""
        return self.by_mass or self.by_count

    def spread(self: Own, places: int) -> Own:
        """Each row's options for as many neighbours: [b * places, 1]."""
        wide = self._each(lambda array: array[:, None] if array.ndim == 1 else array)
        return wide._each(lambda array: mx.repeat(array, places, axis=0))

    def part(self: Own, rows: slice) -> Own:
        """Those of some rows."""
        return self._each(lambda array: array[rows])

    def _each(self: Own, change: Callable[[mx.array], mx.array]) -> Own:
        return replace(
            self,
            inverse_temperature=change(self.inverse_temperature),
            top_p=change(self.top_p),
            top_k=change(self.top_k),
            lowest=change(self.lowest),
            least=change(self.least),
            exclusion=self.exclusion and self.exclusion.each(change),
        )


@dataclass(frozen=True, eq=False)
class Group(Options):
    """Sampling rows of a batch that are handled together.

    Attributes:
        rows: their numbers, ascending.
        index: [b] int32, the same on the device.
        seeds: [b, 2] uint32, as ``noise.seed_words`` gives them.
    """

    rows: tuple[int, ...]
    index: mx.array
    seeds: mx.array

    def of_tokens(self, rows: Sequence[int]) -> Group:
        """The same options for tokens, where token i is one of row ``rows[i]``."""
        places = {row: place for place, row in enumerate(self.rows)}
        own = [(token, places[row]) for token, row in enumerate(rows) if row in places]
        index = mx.array([place for _, place in own], mx.int32)
        tokens = tuple(token for token, _ in own)
        return self._taken(tokens, index)

    def of_told(self, rows: mx.array, batch: int) -> Group:
        """The same for as many tokens as ``rows`` [M] has, where only the device knows whose each
        is of ``batch`` rows; of rows that are not its own any options."""
        places = {row: place for place, row in enumerate(self.rows)}
        own = mx.array([places.get(row, 0) for row in range(batch)], mx.int32)
        return self._taken(tuple(range(rows.shape[0])), own[rows])

    def _taken(self, tokens: tuple[int, ...], index: mx.array) -> Group:
        each = self._each(lambda array: array[index])
        return replace(each, rows=tokens, index=mx.array(tokens, mx.int32), seeds=self.seeds[index])


@dataclass(frozen=True)
class SampleRows:
    """How each row of a batch samples.

    Attributes:
        batch: number of rows.
        greedy: rows of temperature 0.
        groups: the others: those without filters, those with, those with XTC; as far as there are.
    """

    batch: int
    greedy: tuple[int, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls,
        seeds: Sequence[int],
        temperature: Sequence[float],
        top_p: Sequence[float] | None = None,
        top_k: Sequence[int] | None = None,
        min_p: Sequence[float] | None = None,
        more: Sequence[MoreFilters] | None = None,
    ) -> SampleRows:
        """Collect options, one of each kind for each row.

        Args:
            seeds: 0 .. 2**64 - 1.
            temperature: 0 is greedy: the row's other options do not matter then.
            top_p: 1 or more is off.
            top_k: 0 is off.
            min_p: 0 is off.
            more: filters that few rows want.

        Raises:
            ValueError: another number of them than of seeds, or values outside these bounds.
        """
        rows = len(seeds)
        options = _HostOptions(
            tuple(seeds),
            tuple(temperature),
            tuple([1.0] * rows if top_p is None else top_p),
            tuple([0] * rows if top_k is None else top_k),
            tuple([0.0] * rows if min_p is None else min_p),
            tuple([_NO_MORE] * rows if more is None else more),
        )
        options.check()
        greedy = tuple(row for row in range(rows) if options.temperature[row] == 0)
        sampling = [row for row in range(rows) if options.temperature[row] > 0]
        kinds = [[row for row in sampling if options.kind(row) == kind] for kind in range(3)]
        groups = tuple(options.group(some) for some in kinds if some)
        return cls(rows, greedy, groups)

    def of_tokens(self, rows: Sequence[int]) -> SampleRows:
        """As many rows as ``rows`` has, number i with the options of row ``rows[i]`` of these."""
        greedy = tuple(token for token, row in enumerate(rows) if row in self.greedy)
        groups = (group.of_tokens(rows) for group in self.groups)
        return SampleRows(len(rows), greedy, tuple(group for group in groups if group.rows))

    @property
    def kinds(self) -> list[int]:
        """Of each row the number of its group, -1 where it is greedy."""
        kinds = [-1] * self.batch
        for number, group in enumerate(self.groups):
            for row in group.rows:
                kinds[row] = number
        return kinds

    def of_told(self, rows: mx.array) -> list[tuple[int, SampleRows]]:
        """By the number of each kind that there is, all of some tokens as if they were of that one.

        Args:
            rows: [M] int32, the row of each, which only the device knows.
        """
        count = rows.shape[0]
        every = [(-1, SampleRows(count, tuple(range(count)), ()))] if self.greedy else []
        for number, group in enumerate(self.groups):
            every.append((number, SampleRows(count, (), (group.of_told(rows, self.batch),))))
        return every


_NO_MORE = MoreFilters()


class _HostOptions(NamedTuple):
    """One value of each kind a row."""

    seeds: tuple[int, ...]
    temperature: tuple[float, ...]
    top_p: tuple[float, ...]
    top_k: tuple[int, ...]
    min_p: tuple[float, ...]
    more: tuple[MoreFilters, ...]

    def check(self) -> None:
        place = "[metal_kernels.SampleRows]"
        for name, values in self._asdict().items():
            if len(values) != len(self.seeds):
                raise ValueError(f"{place} {len(values)} of {name} for {len(self.seeds)} seeds")
        bounds = {"seeds": 2**64 - 1, "temperature": math.inf, "min_p": 1.0}
        for name, values in list(self._asdict().items())[:-1]:
            most = bounds.get(name, math.inf)
            for row, value in enumerate(values):
                if not 0 <= value <= most or (name == "temperature" and value == math.inf):
                    raise ValueError(f"{place} {name}={value} in row {row}, expected 0..{most}")

    def kind(self, row: int) -> int:
        """0 without filters, 1 with, 2 with XTC."""
        return 2 if self.more[row].xtc_probability > 0 else int(self.filters(row))

    def filters(self, row: int) -> bool:
        return self.top_p[row] < 1 or self.top_k[row] > 0 or self.min_p[row] > 0

    def group(self, rows: list[int]) -> Group:
        top_p = [self.top_p[row] for row in rows]
        excludes = self.kind(rows[0]) == 2
        coldest = _COLDEST_BELOW_TOP if excludes else _COLDEST
        temperature = [min(max(self.temperature[row], coldest), _HOTTEST) for row in rows]
        words = [seed_words(self.seeds[row]) for row in rows]
        mass = [2 * _TOP_P_ONE if p >= 1 else round(p * _TOP_P_ONE) for p in top_p]
        least = [self._least(row) for row in rows]
        top_k = mx.array([min(self.top_k[row] or _UNLIMITED, _UNLIMITED) for row in rows], mx.int32)
        more = [self.more[row] for row in rows]
        by_count = any(self.top_k[row] > 0 for row in rows)
        return Group(
            rows=tuple(rows),
            index=mx.array(rows, mx.int32),
            seeds=mx.array(words, mx.uint32),
            inverse_temperature=mx.array([1.0 / value for value in temperature], mx.float32),
            top_p=mx.array(mass, mx.int64),
            top_k=mx.full(len(rows), _UNLIMITED, mx.int32) if excludes else top_k,
            lowest=mx.array([_lowest_key(self.min_p[row]) for row in rows], mx.int32),
            least=mx.array(least, mx.int32),
            filters=excludes or self.filters(rows[0]),
            by_mass=any(p < 1 for p in top_p),
            by_count=by_count and not excludes,
            by_least=max(least) > 1,
            exclusion=Exclusion.of(more, top_k, by_count) if excludes else None,
        )

    def _least(self, row: int) -> int:
        """Tokens that min-p leaves in any case; 1 is as good as none."""
        least = self.more[row].min_tokens_to_keep
        return min(least, _UNLIMITED) if self.min_p[row] > 0 else 1


def _lowest_key(min_p: float) -> int:
    """The key of a token that has ``min_p`` of the largest probability."""
    if min_p == 0:
        return LARGEST_KEY
    return min(LARGEST_KEY, math.ceil(-math.log2(min_p) * float(2**KEY_BITS)))
