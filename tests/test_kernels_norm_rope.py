"""RMSNorm, residual add + RMSNorm, rope and norm + rope: kernel = reference = ``mx.fast``.

On the simulator each launch runs in three lane orders and must cause no finding; with ``-m metal``
the same bodies run on a Mac.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from metal_kernels import add_rms_norm, norm_rope, rms_norm, rope
from tests.kernel_support import DTYPES, assert_close, normal

WIDTHS = (1, 3, 31, 48, 130, 1000, 4096, 5001)
WIDTHS_AND_TYPES = [(width, mx.float32) for width in WIDTHS] + [
    (width, dtype) for width in (48, 1000, 4096) for dtype in DTYPES[1:]
]
FREQS = "freqs"


@pytest.mark.parametrize(("width", "dtype"), WIDTHS_AND_TYPES, ids=str)
def test_rms_norm(gpu: Any, width: int, dtype: mx.Dtype) -> None:
    x, weight = normal(2, 3, width, dtype=dtype), normal(width, dtype=dtype, seed=1)
    assert_close(rms_norm.kernel(x, weight, 1e-6), rms_norm.reference(x, weight, 1e-6))


@pytest.mark.parametrize(("width", "dtype"), WIDTHS_AND_TYPES, ids=str)
def test_add_rms_norm(gpu: Any, width: int, dtype: mx.Dtype) -> None:
    x, residual = normal(2, 3, width, dtype=dtype), normal(2, 3, width, dtype=dtype, seed=5)
    weight = normal(width, dtype=dtype, seed=1)
    total, normed = add_rms_norm.kernel(x, residual, weight)
    expected_total, expected = add_rms_norm.reference(x, residual, weight)
    assert mx.array_equal(total, expected_total)
    assert_close(normed, expected)


def test_norms_without_weight_of_mixed_types_and_of_views(gpu: Any) -> None:
    x = normal(5, 2, 80, dtype=mx.float16)
    view = normal(80, 2, 5).transpose(2, 1, 0)
    weight = normal(80, seed=1)
    for arguments in ((x, None), (x, weight), (view, weight), (x[:, :1], None), (x[0, 0], None)):
        assert_close(rms_norm.kernel(*arguments), rms_norm.reference(*arguments))
    ours = add_rms_norm.kernel(x, view, weight)
    for one, other in zip(ours, add_rms_norm.reference(x, view, weight), strict=True):
        assert_close(one, other)
    assert rms_norm.kernel(x[:0]).shape == (0, 2, 80)


@pytest.mark.parametrize("width", [1, 48, 1000])
def test_the_norms_reference_is_mlx_s(width: int) -> None:
    for dtype in DTYPES:
        x, weight = normal(3, 2, width, dtype=dtype), normal(width, dtype=dtype, seed=1)
        assert_close(rms_norm.reference(x, weight, 1e-5), mx.fast.rms_norm(x, weight, 1e-5))
        assert_close(rms_norm.reference(x), mx.fast.rms_norm(x, None, 1e-5))
        total, normed = add_rms_norm.reference(x, x[:1] * mx.ones_like(x), weight)
        assert mx.array_equal(total, x + x[:1])
        assert_close(normed, mx.fast.rms_norm(total, weight, 1e-5))


ROPES: dict[str, dict[str, Any]] = {
    "whole": {"dims": 64},
    "traditional": {"dims": 64, "traditional": True},
    "partial": {"dims": 24, "base": 500.0},
    "partial traditional": {"dims": 6, "traditional": True, "scale": 0.25},
    "odd rest": {"dims": 62, FREQS: 62},
    "frequencies": {"dims": 64, FREQS: 64, "scale": 0.5},
}


def rope_options(kind: str) -> dict[str, Any]:
    """Keywords of one kind; frequencies end in inf, which leaves a pair unturned."""
    options = dict(ROPES[kind])
    if FREQS in options:
        count = options[FREQS] // 2
        options[FREQS] = mx.concatenate([1.5 ** mx.arange(count - 1), mx.array([mx.inf])])
    return options


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ROPES)
def test_rope(gpu: Any, kind: str, dtype: mx.Dtype) -> None:
    options = rope_options(kind)
    offsets = mx.array([0, 7, 300])
    for x in (
        normal(3, 5, 4, 64, dtype=dtype),
        normal(3, 4, 5, 64, dtype=dtype).transpose(0, 2, 1, 3),
        normal(3, 2, 1, 128, dtype=dtype)[..., ::2],
    ):
        ours = rope.kernel(x, offsets, **options)
        assert_close(ours, rope.reference(x, offsets, **options), 4)


@pytest.mark.parametrize("kind", ROPES)
def test_the_rope_reference_is_mlx_s(kind: str) -> None:
    options = rope_options(kind)
    x, offsets = normal(3, 5, 4, 64), mx.array([0, 7, 300])
    theirs = mx.fast.rope(
        x,
        options["dims"],
        traditional=options.get("traditional", False),
        base=None if FREQS in options else options.get("base", 10000.0),
        scale=options.get("scale", 1.0),
        offset=offsets,
        freqs=options.get(FREQS),
    )
    assert_close(rope.reference(x, offsets, **options), theirs, 4)


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [(3, mx.float32), (3, mx.float16), (3, mx.bfloat16), (1, mx.float32), (8, mx.float16)],
    ids=str,
)
@pytest.mark.parametrize("kind", ROPES)
def test_norm_rope(gpu: Any, kind: str, rows: int, dtype: mx.Dtype) -> None:
    options = rope_options(kind)
    offsets = mx.arange(rows) * 37
    queries = normal(rows, 2, 3, 64, dtype=dtype).transpose(0, 2, 1, 3)
    keys = normal(rows, 1, 2, 64, dtype=dtype, seed=1)
    if rows == 3:  # one view has other strides than the other
        keys = normal(rows, 2, 128, dtype=dtype, seed=1)[:, None, :, ::2]
    arguments = (queries, keys, normal(64, seed=2), normal(64, seed=3), offsets)
    ours = norm_rope.kernel(*arguments, eps=1e-6, **options)
    for one, other in zip(ours, norm_rope.reference(*arguments, eps=1e-6, **options), strict=True):
        assert_close(one, other, 4)


def test_norm_rope_is_norm_then_rope() -> None:
    queries, keys, weight = normal(3, 4, 2, 48), normal(3, 2, 2, 48, seed=1), normal(48)
    offsets = mx.array([5, 0, 90])
    ours = norm_rope.reference(queries, keys, weight, weight, offsets, dims=48)
    for one, x in zip(ours, (queries, keys), strict=True):
        normed = mx.fast.rms_norm(x, weight, 1e-5)
        turned = mx.fast.rope(
            normed, 48, traditional=False, base=10000.0, scale=1.0, offset=offsets
        )
        assert_close(one, turned, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(mx.array(1.0)), r"\[metal_kernels.rms_norm\] x has shape \(\)"),
        (lambda: rms_norm(mx.ones((2, 4), mx.int32)), r"rms_norm\] x is mlx.core.int32"),
        (lambda: rms_norm(mx.ones((2, 4)), mx.ones((3,))), r"weight has 3 elements, expected 4"),
        (lambda: rms_norm([1.0]), r"rms_norm\] x is a list"),  # type: ignore[arg-type]
        (
            lambda: add_rms_norm(mx.ones((2, 4)), mx.ones((1, 4))),
            r"add_rms_norm\] x is \(2, 4\) and residual \(1, 4\)",
        ),
        (lambda: rope(mx.ones((2, 4)), mx.array([0]), dims=4), r"rope\] x has shape \(2, 4\)"),
        (
            lambda: rope(mx.ones((2, 1, 1, 4)), mx.array([0]), dims=4),
            r"offsets are \(1,\).* 2 rows",
        ),
        (
            lambda: rope(mx.ones((1, 1, 1, 4)), mx.array([0.5]), dims=4),
            r"offsets are mlx.core.float",
        ),
        (lambda: rope(mx.ones((1, 1, 1, 4)), mx.array([0]), dims=3), r"dims=3, expected an even"),
        (lambda: rope(mx.ones((1, 1, 1, 4)), mx.array([0]), dims=6), r"dims=6, .* 2..4"),
        (
            lambda: rope(mx.ones((1, 1, 1, 4)), mx.array([0]), dims=4, freqs=mx.ones((3,))),
            r"freqs have shape \(3,\), expected \(2,\)",
        ),
        (
            lambda: norm_rope(
                mx.ones((1, 2, 3, 8)),
                mx.ones((1, 2, 2, 8)),
                mx.ones((8,)),
                mx.ones((8,)),
                mx.array([0]),
                dims=8,
            ),
            r"norm_rope\] queries are \(1, 2, 3, 8\) and keys",
        ),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
