"""Planted bugs in the Metal sources, the cases that must notice them, and what does.

A kernel that gives right values with a race in it is the reason for the findings; a wrong edge
that no check can know of is the reason for the values.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import mlx.core as mx

from metal_kernels import AttentionConfig, add_rms_norm, attention, norm_rope, rms_norm
from tests import kernel_mutants_sample
from tests.kernel_support import Attend, Mutant, error, normal


def run_norm() -> float:
    x, weight = normal(3, 1000), normal(1000, seed=1)
    return error(rms_norm.kernel(x, weight), rms_norm.reference(x, weight))


def run_add() -> float:
    arguments = (normal(3, 1000), normal(3, 1000, seed=5), normal(1000, seed=1))
    pairs = zip(add_rms_norm.kernel(*arguments), add_rms_norm.reference(*arguments), strict=True)
    return worst(error(one, other) for one, other in pairs)


def run_turn() -> float:
    arguments = (normal(3, 4, 2, 48), normal(3, 2, 2, 48, seed=1), normal(48), normal(48, seed=2))
    offsets = mx.array([3, 50, 7])
    ours = norm_rope.kernel(*arguments, offsets, dims=40)
    return worst(
        error(one, other)
        for one, other in zip(ours, norm_rope.reference(*arguments, offsets, dims=40), strict=True)
    )


CASE = Attend((33, 5, 70), q_heads=8, tokens=3, capacity=70, head_dim=48)
WINDOWED = Attend(
    (70, 33, 64), q_heads=2, tokens=3, capacity=70, head_dim=48, options={"window": 9}
)
SPLIT = AttentionConfig(threadgroups=64, split_keys=20)


def run_attention() -> float:
    return CASE.error()


def run_window() -> float:
    return WINDOWED.error()


def run_split() -> float:
    return CASE.error(attention.configured(SPLIT))


def worst(errors: Any) -> float:
    """The largest, NaN counting as infinite."""
    return max(math.inf if math.isnan(one) else one for one in errors)


CASES = (
    *(run_norm, run_add, run_turn, run_attention, run_window, run_split),
    *kernel_mutants_sample.CASES,
)

_norm = partial(Mutant, "rms_norm.metal", run=run_norm)
_turn = partial(Mutant, "rope.metal", run=run_turn)
_attention = partial(Mutant, "attention.metal", run=run_attention)

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
WRONG_BARRIER = "threadgroup_barrier(mem_flags::mem_device);"

MUTANTS = [
    _norm("norm: missing barrier", BARRIER, "", "race uninitialised value"),
    _norm(
        "norm: barrier of the wrong memory",
        "mem_flags::mem_threadgroup",
        "mem_flags::mem_device",
        "race",
    ),
    _norm(
        "norm: barrier for one lane only",
        f"= value;\n  }}\n  {BARRIER}",
        f"= value;\n    {BARRIER}\n  }}",
        "divergent_simd uninitialised value",
    ),
    _norm("norm: end of the row not looked for", "d < H", "d >= 0", "out_of_bounds race value"),
    _norm("norm: wrong row stride", "grid.x) * H", "grid.x) * (H - 1)", "race unwritten value"),
    _norm(
        "norm: a simdgroup left out of the sum",
        "lane < simdgroups",
        "lane + 1 < simdgroups",
        "value",
    ),
    _norm(
        "norm: sums of simdgroups that do not exist",
        "lane < simdgroups ? partials[lane] : 0.0f",
        "partials[lane]",
        "uninitialised value",
    ),
    _norm(
        "add + norm: the first row's residual for all",
        "residual[row + d]",
        "residual[d]",
        "value",
        run=run_add,
    ),
    _turn("norm + rope: the first row's offset for all", "offsets[row]", "offsets[0]", "value"),
    _turn(
        "norm + rope: every token at the first one's position",
        "offsets[row] + token",
        "offsets[row]",
        "value",
    ),
    _turn(
        "norm + rope: a sum over some lanes only",
        "simd_sum(squares)",
        "(lane < 10 ? simd_sum(squares) : squares)",
        "value",
    ),
    _turn(
        "norm + rope: dims past the rotated ones forgotten",
        "const int d = DIMS + lane + 32 * i;\n    if (d < D)",
        "const int d = DIMS + lane + 32 * i;\n    if (d < DIMS)",
        "unwritten value",
    ),
    _attention(
        "attention: no barrier after staging",
        f"    {BARRIER}\n\n    // Scores",
        "    // Scores",
        "race uninitialised value",
    ),
    _attention(
        "attention: no barrier before the next tile",
        f"    {BARRIER}\n  }}\n\n//! section merge",
        "  }\n\n//! section merge",
        "race value",
    ),
    _attention(
        "attention: barrier of the wrong memory",
        f"    {BARRIER}\n\n    // Scores",
        f"    {WRONG_BARRIER}\n\n    // Scores",
        "race value",
    ),
    _attention(
        "attention: divergent barrier",
        f"    }}\n    {BARRIER}\n  }}\n\n//! section write_out",
        f"      {BARRIER}\n    }}\n  }}\n\n//! section write_out",
        "race uninitialised value",
    ),
    _attention("attention: the first row's length for all", "lengths[row]", "lengths[0]", "value"),
    _attention(
        "attention: a tile read past the length",
        "if (token >= there)",
        "if (token >= TOKENS)",
        "out_of_bounds value",
    ),
    _attention(
        "attention: the rest of a tile not cleared",
        "to[j] = static_cast<T>(0.0f);",
        "(void)to[0];",
        "uninitialised value",
    ),
    _attention(
        "attention: a query sees the next key",
        "at <= position[r]\n",
        "at <= position[r] + 1\n",
        "value",
    ),
    _attention(
        "attention: a query does not see its own key",
        "at <= position[r]\n",
        "at < position[r]\n",
        "value",
    ),
    _attention(
        "attention: the window one key too wide",
        "at > position[r] - WINDOW",
        "at >= position[r] - WINDOW",
        "value",
        run=run_window,
    ),
    _attention(
        "attention: the window's first keys not staged",
        "length - tokens - WINDOW + 1",
        "length - WINDOW",
        "value",
        run=run_window,
    ),
    _attention(
        "attention: the largest score sought by some lanes only",
        "simd_max(seen ? score : LOWEST)",
        "(seen ? simd_max(score) : LOWEST)",
        "divergent_simd value",
    ),
    _attention(
        "attention: values not rescaled",
        "for (int i = 0; i < DIMS; i++) sums[r][i] *= rescale;\n    }\n\n    // Values",
        "for (int i = 0; i < DIMS; i++) sums[r][i] *= 1.0f;\n    }\n\n    // Values",
        "value",
    ),
    _attention(
        "attention: weights not rescaled",
        "total[r] * rescale + simd_sum",
        "total[r] + simd_sum",
        "value",
    ),
    _attention(
        "attention: weights of shared lanes counted twice",
        "simd_sum(lane % LANES == 0 ? weight[r] : 0.0f)",
        "simd_sum(weight[r])",
        "value",
    ),
    _attention(
        "attention: a weight from the wrong lane", "ushort(j * LANES)", "ushort(j)", "value"
    ),
    _attention(
        "attention: simdgroups half as wide", "lane + 32 * i", "lane + 16 * i", "race value"
    ),
    _attention(
        "attention: strides of row and head swapped",
        "row * strides[0] + head * strides[1]",
        "row * strides[1] + head * strides[0]",
        "out_of_bounds value",
    ),
    _attention(
        "attention: heads interleaved",
        "const int head = kv_head * heads + query / tokens;",
        "const int head = query / tokens * kv_heads + kv_head;",
        "value",
    ),
    _attention(
        "attention: tile shorter than its pitch",
        "key_tile[TILE * PITCH]",
        "key_tile[TILE * D]",
        "array_bounds out_of_bounds value",
    ),
    _attention(
        "attention: groups merged without their largest scores",
        "const float rescale = metal::fast::exp(top[r] - highest);\n    UNROLL",
        "const float rescale = 1.0f;\n    UNROLL",
        "value",
    ),
    _attention(
        "attention: splits overlap",
        "min(begin + each, length)",
        "min(begin + each + 1, length)",
        "value",
        run=run_split,
    ),
    _attention(
        "attention: splits merged without their largest scores",
        "const float rescale = metal::fast::exp(top - highest);",
        "const float rescale = 1.0f;",
        "value",
        run=run_split,
    ),
    _attention(
        "attention: a split's sum not written",
        "stats[2 * to + 1] = total[r];",
        "",
        "unwritten value",
        run=run_split,
    ),
    *kernel_mutants_sample.MUTANTS,
]
