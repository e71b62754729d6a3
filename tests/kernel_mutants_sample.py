"""Planted bugs in the sampling kernels, for ``test_kernels_mutants``."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np

from metal_kernels import MoreFilters, SampleRows, sample
from tests.kernel_support import Mutant, normal

SEEDS = (1, 2**40 + 3, 7, 2**40 + 7)
PLAIN = SampleRows.of(SEEDS, (0.8, 0, 2.0, 1.3))
FILTERED = SampleRows.of(
    SEEDS, (100.0, 0, 50.0, 100.0), (0.6, 1, 0.9, 1), (0, 0, 40, 7), (0, 0, 0.3, 0)
)
EXCLUDING = SampleRows.of(
    SEEDS,
    [100.0] * 4,
    (1, 1, 0.4, 1),
    (0, 5, 0, 0),
    (0, 0, 0, 0.6),
    [
        MoreFilters(1, 0.5, 0.004, tuple(range(0, 72, 2))),
        MoreFilters(1, 1.0, 0.03),
        MoreFilters(1, 0.7, 0.07, (0,)),
        MoreFilters(8),
    ],
)


def _wrong(rows: SampleRows, vocabulary: int, places: int) -> float:
    """Share of tokens that differ from the reference's; logits have many ties."""
    logits = mx.round(normal(4, places, vocabulary) * 8) / 4
    positions = mx.arange(4 * places).reshape(4, -1) * 5
    ours = np.array(sample.kernel(logits, positions, rows).tokens)
    return float((ours != np.array(sample.reference(logits, positions, rows).tokens)).mean())


def run_race() -> float:
    return _wrong(PLAIN, 4200, 3)


def run_cut() -> float:
    return _wrong(FILTERED, 72, 40)


def run_exclusion() -> float:
    return _wrong(EXCLUDING, 72, 40)


CASES = (run_race, run_cut, run_exclusion)

_race = partial(Mutant, "sample.metal", run=run_race)
_cut = partial(Mutant, "sample.metal", run=run_cut)
_exclusion = partial(Mutant, "sample.metal", run=run_exclusion)

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"

MUTANTS = [
    _race(
        "sample: the first row's seed for all",
        "seeds[2 * row], seeds[2 * row + 1]",
        "seeds[0], seeds[1]",
        "value",
    ),
    _race("sample: half of the seed dropped", "seeds[2 * row + 1]", "0u", "value"),
    _race("sample: the first position for all", "positions[place]", "positions[0]", "value"),
    _race(
        "sample: the first row's temperature for all",
        "inverse_temperature[row]",
        "inverse_temperature[0]",
        "value",
    ),
    _race("sample: rows of the group taken for the batch's", "index[row]", "row", "value"),
    _race(
        "sample: the last part not cut to the vocabulary",
        "min((part + 1) * SPLIT, V)",
        "(part + 1) * SPLIT",
        "out_of_bounds",
    ),
    _race("sample: a bound below what it bounds", "110.212f ", "105.0f ", "value"),
    _race(
        "sample: winners read before they are written",
        f"= lowest_id;\n  }}\n  {BARRIER}",
        "= lowest_id;\n  }",
        "race uninitialised",
    ),
    _race(
        "sample: the lowest id sought by some lanes only",
        "simd_min(best == highest ? chosen : V)",
        "(best == highest ? simd_min(chosen) : V)",
        "divergent_simd",
    ),
    _cut(
        "sample: sums overwritten while they are read",
        f"{BARRIER}  // whoever",
        "// whoever",
        "race",
    ),
    _cut(
        "sample: room for two sums of three",
        "room[3 * THREADS / 32]",
        "room[2 * THREADS / 32]",
        "out_of_bounds",
    ),
    _cut("sample: the upper half of a mass dropped", "(ulong(all_high) << 16) + ", "", "value"),
    _cut("sample: top-k keeps one too many", "ulong(most))", "ulong(most) + 1ul)", "value"),
    _cut("sample: min-p forgotten", "{uint(lowest[row]), V}", "{LARGEST_KEY, V}", "value"),
    _cut("sample: all ties kept", "key == last_key && t > last_token", "false", "value"),
    _cut("sample: keys found to their upper half only", "int bit = 7", "int bit = -1", "value"),
    _cut(
        "sample: ids found but for the last bit",
        "bit >= 0; bit--) {\n    const int",
        "bit > 0; bit--) {\n    const int",
        "value",
    ),
    _exclusion("sample: one coin for all positions", "stream_word(keys, 1u)", "0u", "value"),
    _exclusion("sample: special tokens excluded too", "special[i] == token", "false", "value"),
    _exclusion(
        "sample: the last top choice excluded too", "? choices :", "? choices + 1u :", "value"
    ),
    _exclusion(
        "sample: a threshold of all mass, not of what is kept",
        "cut.keeps(key, t) ? ulong(mass",
        "true ? ulong(mass",
        "value",
    ),
    _exclusion("sample: top-k counts what is excluded", "!without.has(key, t)", "true", "value"),
    _exclusion(
        "sample: min-p leaves too few", "some.key > least.key ? some : least", "least", "value"
    ),
    _exclusion("sample: the first row's top choices for all", "share[row]", "share[0]", "value"),
]
