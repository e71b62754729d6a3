"""Attention by length: kernel = reference = ``mx.fast``, in every shape that speculation makes.

What lies past a row's length is NaN in all inputs: a kernel that reads it, fails. On the simulator
each launch runs in three lane orders and must cause no finding; with ``-m metal`` the same bodies
run on a Mac.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import mlx.core as mx
import pytest

import metal_kernels
from metal_kernels import AttentionConfig, Lengths, attention
from metal_kernels.attention_plan import THREADGROUP_BYTES, make_plan
from tests.kernel_support import DTYPES, TOLERANCE, Attend, error, normal

EIGHT = (0, 1, 2, 31, 32, 33, 64, 180)
# Small tiles and few splits; the machine filled even by one row, at the cost of partial results.
LOW_MEMORY = AttentionConfig(
    simdgroups=4, tile_bytes=6 * 1024, query_bytes=8 * 1024, threadgroups=16, split_keys=1024
)
HIGH_SPEED = AttentionConfig(threadgroups=256, split_keys=128)
CONFIGS = {
    "default": AttentionConfig(),
    "low memory": LOW_MEMORY,
    "split": AttentionConfig(threadgroups=64, split_keys=30),
}


def check(case: Attend, config: AttentionConfig | None = None) -> None:
    wrong = case.error(attention.configured(config or AttentionConfig()))
    assert wrong <= TOLERANCE[case.dtype], f"off by {wrong:.2e} of the largest value"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [8, 48, 64, 80, 96, 128, 256])
def test_head_dims_and_types(gpu: Any, head_dim: int, dtype: mx.Dtype) -> None:
    check(Attend((77, 0, 180), head_dim=head_dim, dtype=dtype, tokens=2))


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("shared", [1, 4, 7, 8])
def test_rows_and_shared_heads(gpu: Any, shared: int, rows: int) -> None:
    heads = 1 if rows == 8 else 2
    check(Attend(EIGHT[-rows:], q_heads=heads * shared, kv_heads=heads, tokens=5, dtype=mx.float16))


@pytest.mark.parametrize("tokens", [1, 2, 8, 16])
@pytest.mark.parametrize("config", CONFIGS)
def test_widths_of_the_verify_pass(gpu: Any, tokens: int, config: str) -> None:
    check(Attend((180, 3, 96, 0), tokens=tokens, q_heads=8), CONFIGS[config])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 40},
        {"window": 500},
        {"sinks": True},
        {"softcap": 2.0},
        {"sinks": True, "softcap": 0.5, "window": 33},
    ],
    ids=str,
)
def test_window_sinks_and_softcap(gpu: Any, options: dict[str, Any], config: str) -> None:
    check(Attend((180, 1, 65, 0), head_dim=32, options=options), CONFIGS[config])


@pytest.mark.parametrize("view", ["pool", "strided"])
def test_views_are_read_in_place(gpu: Any, view: str) -> None:
    for config in CONFIGS.values():
        check(Attend((180, 17, 0), view=view, dtype=mx.float16), config)


def test_lengths_at_the_edges_of_tiles_and_splits(gpu: Any) -> None:
    config = CONFIGS["split"]
    plan = make_plan(config, groups=9, queries=1, capacity=180, head_dim=16, itemsize=4)
    assert plan.splits > 1
    edges = sorted({n * plan.tile + near for n in (1, 2) for near in (-1, 0, 1)} | {180, 1, 0})
    case = Attend(tuple(n for n in edges if n <= 180), q_heads=1, kv_heads=1, tokens=1, head_dim=16)
    check(case, config)
    check(case)


def test_more_queries_than_one_threadgroup_holds(gpu: Any) -> None:
    check(Attend((40, 25), q_heads=8, kv_heads=1, tokens=16, capacity=40, head_dim=128))


def test_device_lengths_beyond_the_slot_read_nothing_past_it(gpu: Any) -> None:
    q, k, v = normal(2, 2, 1, 16), normal(2, 1, 20, 16, seed=1), normal(2, 1, 20, 16, seed=2)
    lying = Lengths(mx.array([99, -3]), 20)
    ours = attention.kernel(q, k, v, lying, scale=0.25)
    assert error(ours, attention.reference(q, k, v, [20, 0], scale=0.25)) <= 1e-5


def test_nothing_to_attend_to(gpu: Any) -> None:
    q, k = normal(2, 2, 1, 16), mx.zeros((2, 1, 0, 16))
    assert mx.array_equal(attention.kernel(q, k, k, [0, 0], scale=1.0), mx.zeros_like(q))
    k = normal(2, 1, 8, 16)
    assert mx.array_equal(attention.kernel(q, k, k, [0, 0], scale=1.0), mx.zeros_like(q))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 9}, {"sinks": True}], ids=str)
def test_the_reference_is_mlx_s(options: dict[str, Any], dtype: mx.Dtype) -> None:
    case = Attend((50, 4, 17), q_heads=6, capacity=50, dtype=dtype, options=options)
    (q, k, v, lengths), options = case.inputs()
    k, v = (mx.where(mx.isnan(x), mx.array(0, dtype), x) for x in (k, v))
    window = options.get("window") or 1000
    positions = mx.array(lengths)[:, None, None, None] - 3 + mx.arange(3)[:, None]
    keys = mx.arange(50)
    theirs = mx.fast.scaled_dot_product_attention(
        q,
        k,
        v,
        scale=options["scale"],
        mask=(keys <= positions) & (keys > positions - window),
        sinks=options.get("sinks"),
    )
    ours = attention.reference(q, k, v, lengths, **options)
    # MLX's CPU fallback rounds scores and weights to the type; the reference does not.
    assert error(ours, theirs) <= 4 * TOLERANCE[dtype]


def test_the_reference_caps_scores() -> None:
    (q, k, v, _), _ = Attend((180,), q_heads=2, tokens=1).inputs()
    scores = 0.3 * mx.tanh((q @ k.swapaxes(-1, -2)) / 8 / 0.3)
    expected = mx.softmax(scores, axis=-1) @ v
    ours = attention.reference(q, k, v, [180], scale=1 / 8, softcap=0.3)
    assert error(ours, expected) <= 1e-5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"q": mx.ones((2, 4, 64))}, r"q has shape \(2, 4, 64\), expected \[B, Hq, N, D\]"),
    ({"q": mx.ones((2, 4, 1, 64), mx.int32)}, r"q is mlx.core.int32, expected float32"),
    ({"q": mx.ones((2, 4, 1, 64), mx.float16)}, r"q is mlx.core.float16, k mlx.core.float32"),
    ({"q": mx.ones((3, 4, 1, 64))}, r"q is \(3, 4, 1, 64\), k \(2, 2, 9, 64\)"),
    ({"q": mx.ones((2, 3, 1, 64))}, r"3 query heads, 2 KV heads"),
    ({"q": mx.ones((2, 4, 17, 64))}, r"17 new tokens a row, expected 1..16"),
    ({"v": mx.ones((2, 2, 8, 64))}, r"B, D or T do not agree"),
    ({"lengths": [1]}, r"lengths have shape \(1,\), expected \(2,\)"),
    ({"lengths": [1, 10]}, r"a length of 10, the slots hold 9 keys"),
    ({"lengths": mx.array([1, 10])}, r"a length of 10, the slots hold 9 keys"),
    ({"lengths": Lengths(mx.array([1, 2]), 10)}, r"a length of 10, the slots hold 9 keys"),
    ({"lengths": [1, -1]}, r"a length of -1, expected >= 0"),
    ({"lengths": mx.array([1.0, 2.0])}, r"lengths are mlx.core.float32, expected integers"),
    ({"window": 0}, r"window=0, expected >= 1"),
    ({"softcap": 0.0}, r"softcap=0.0, expected > 0"),
    ({"sinks": mx.ones((2,))}, r"sinks has 2 elements, expected 4"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("call", [attention, attention.kernel, attention.reference])
def test_bad_input_is_named_before_anything_runs(
    call: Any, wrong: dict[str, Any], message: str
) -> None:
    good = {
        "q": mx.ones((2, 4, 1, 64)),
        "k": mx.ones((2, 2, 9, 64)),
        "v": mx.ones((2, 2, 9, 64)),
        "lengths": [9, 3],
    }
    with pytest.raises(ValueError, match=r"^\[metal_kernels.attention\] .*" + message):
        call(**{**good, **wrong}, scale=1.0)


def test_a_head_dim_that_no_kernel_has() -> None:
    for width in (20, 264):
        q = mx.ones((1, 1, 1, width))
        with pytest.raises(ValueError, match=f"head dim {width}, expected a multiple of 8"):
            attention(q, q, q, [1], scale=1.0)


def test_every_plan_fits_and_covers_its_queries() -> None:
    for config, shape in product(
        (*CONFIGS.values(), HIGH_SPEED, AttentionConfig(1, 1, 1, 1, 1)),
        product((1, 64), (1, 2, 7, 20, 64, 128), (9, 8192), (8, 80, 128, 256), (2, 4)),
    ):
        names = ("groups", "queries", "capacity", "head_dim", "itemsize")
        options = dict(zip(names, shape, strict=True))
        plan = make_plan(config, **options)
        assert plan.threads <= 256
        assert plan.keys in (1, 2, 4, 8, 16, 32)
        assert plan.splits <= 32
        assert plan.threadgroup_bytes(options["head_dim"], options["itemsize"]) <= THREADGROUP_BYTES
        held = plan.rows * plan.row_blocks
        assert held * (plan.parts - 1) < options["queries"] <= held * plan.parts


def test_memory_is_estimated() -> None:
    shape = {"batch": 8, "q_heads": 16, "kv_heads": 8, "queries": 5, "head_dim": 128}
    long = attention.memory_estimate(**shape, capacity=8192)
    assert long.flash == 8 * 16 * 5 * 128 * 2
    assert long.standard == long.flash + 2 * 8 * 16 * 5 * 8192 * 2
    split = attention.configured(HIGH_SPEED).memory_estimate(**shape, capacity=8192)
    assert split.flash == long.flash + 8 * 16 * 5 * 4 * 130 * 4
    lean = attention.configured(LOW_MEMORY).memory_estimate(**shape, capacity=8192)
    assert lean.threadgroup < long.threadgroup
    with pytest.raises(ValueError, match="simdgroups=9"):
        AttentionConfig(simdgroups=9)


def test_the_choice_of_an_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    q = normal(1, 1, 1, 8)
    with pytest.raises(ValueError, match="there is no Metal here"), metal_kernels.use("metal"):
        pass
    with pytest.raises(ValueError, match="'fast', expected one of"), metal_kernels.use("fast"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="kernel needs Metal"):
        attention.kernel(q, q, q, [1], scale=1.0)
    with metal_kernels.use("reference"):
        assert error(attention(q, q, q, [1], scale=1.0), q) <= 1e-6


def test_plain_calls_take_what_is_in_use(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(1, 1, 1, 8)
    ran = []
    monkeypatch.setattr(attention, "_kernel", lambda *a, **k: ran.append("kernel") or q)
    attention(q, q, q, [1], scale=1.0)
    assert ran == []
    with metal_kernels.use("metal"):
        attention(q, q, q, [1], scale=1.0)
        with metal_kernels.use("reference"):
            attention(q, q, q, [1], scale=1.0)
    assert ran == ["kernel"]
