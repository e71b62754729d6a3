"""What the simulator's Metal library computes, against numpy and mlx."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import metal_sim
from metal_sim.probe import Probe, run

metal_sim.skip_unless_available()

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
TOLERANCE = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}
Array = Any

UNIT = np.linspace(-0.95, 0.95, 64)  # where every function is defined, with its positive twin
POSITIVE = np.linspace(0.05, 3.0, 64)

UNARY: dict[str, tuple[Callable[[Array], Array], Array]] = {
    "exp": (np.exp, UNIT),
    "exp2": (np.exp2, UNIT),
    "exp10": (lambda x: 10.0**x, UNIT),
    "log": (np.log, POSITIVE),
    "log2": (np.log2, POSITIVE),
    "log10": (np.log10, POSITIVE),
    "sin": (np.sin, UNIT),
    "cos": (np.cos, UNIT),
    "tan": (np.tan, UNIT),
    "asin": (np.arcsin, UNIT),
    "acos": (np.arccos, UNIT),
    "atan": (np.arctan, UNIT),
    "sinh": (np.sinh, UNIT),
    "cosh": (np.cosh, UNIT),
    "tanh": (np.tanh, UNIT),
    "asinh": (np.arcsinh, UNIT),
    "acosh": (np.arccosh, POSITIVE + 1),
    "atanh": (np.arctanh, UNIT),
    "sqrt": (np.sqrt, POSITIVE),
    "rsqrt": (lambda x: 1 / np.sqrt(x), POSITIVE),
    "fabs": (np.abs, UNIT),
    "floor": (np.floor, POSITIVE * 3),
    "ceil": (np.ceil, POSITIVE * 3),
    "trunc": (np.trunc, UNIT * 3),
    "rint": (np.rint, np.arange(64) / 4),
    "round": (lambda x: np.floor(x + 0.5), np.arange(64) / 4),
    "saturate": (lambda x: np.clip(x, 0, 1), UNIT * 2),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "pow": lambda x, y: np.abs(x) ** y,
    "atan2": np.arctan2,
    "fmod": np.fmod,
    "fmin": np.fmin,
    "fmax": np.fmax,
    "min": np.minimum,
    "max": np.maximum,
    "copysign": np.copysign,
    "fdim": lambda x, y: np.maximum(x - y, 0),
}


def rounded(values: Array, dtype: mx.Dtype) -> mx.array:
    """The values as the kernel gets them."""
    return mx.array(np.asarray(values, np.float32)).astype(dtype)


def exact(array: mx.array) -> Array:
    """An array's values in double precision."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("space", ["metal", "fast", "metal::precise"])
def test_functions_of_one_value(dtype: mx.Dtype, space: str) -> None:
    inputs = rounded(np.stack([points for _, points in UNARY.values()]), dtype)
    lines = [f"out[{k} * 64 + i] = {space}::{f}(a[{k} * 64 + i]);" for k, f in enumerate(UNARY)]
    result = run(Probe(" ".join(lines), [inputs], inputs.shape, dtype))
    assert not result.findings
    got = exact(result.out)
    for k, (name, (reference, _)) in enumerate(UNARY.items()):
        want = reference(exact(inputs[k]))
        np.testing.assert_allclose(got[k], want, TOLERANCE[dtype], 1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_functions_of_two_values(dtype: mx.Dtype) -> None:
    x, y = rounded(UNIT, dtype), rounded(POSITIVE[::-1], dtype)
    lines = [
        f"out[{k} * 64 + i] = metal::{f}({'abs(a[i])' if f == 'pow' else 'a[i]'}, b[i]);"
        for k, f in enumerate(BINARY)
    ]
    result = run(Probe(" ".join(lines), [x, y], (len(BINARY), 64), dtype))
    assert not result.findings
    for k, (name, reference) in enumerate(BINARY.items()):
        want = reference(exact(x), exact(y))
        np.testing.assert_allclose(exact(result.out)[k], want, TOLERANCE[dtype], 1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_small_floats_round_after_every_operation(dtype: mx.Dtype) -> None:
    x, y, z = (mx.random.normal((64,), key=mx.random.key(k)).astype(dtype) for k in range(3))
    body = "T s = a[i] * b[i]; s = s + c[i]; out[i] = s * a[i] + b[i] - c[i] / a[i];"
    result = run(Probe(body, [x, y, z], dtype=dtype, template=[("T", dtype)]))
    want = (x * y + z) * x + y - z / x
    assert not result.findings
    assert mx.array_equal(result.out, want)
    once = (exact(x) * exact(y) + exact(z)) * exact(x) + exact(y) - exact(z) / exact(x)
    assert not mx.array_equal(result.out, rounded(once, dtype))  # the test can tell


def test_a_literal_is_a_float() -> None:
    body = "out[i] = i == 0 ? sizeof(1.0) : i == 1 ? sizeof(1.0h) : 1.0 / 3 == 1.0f / 3;"
    assert run(Probe(body)).out[:3].tolist() == [4, 2, 1]


def test_nan_loses_against_numbers() -> None:
    body = "out[i] = i % 2 ? max(a[i], NAN) : min(float(NAN), a[i]);"
    assert mx.array_equal(run(Probe(body, [mx.arange(64).astype(mx.float32)])).out, mx.arange(64))


def test_numeric_limits() -> None:
    parts = [
        "numeric_limits<half>::max()",
        "float(numeric_limits<bfloat>::epsilon())",
        "-Limits<float>::min == INFINITY",
        "numeric_limits<int8_t>::min()",
        "numeric_limits<float>::lowest() == -MAXFLOAT",
        "isnan(numeric_limits<half>::quiet_NaN())",
    ]
    body = " ".join(f"out[{k}] = {part};" for k, part in enumerate(parts))
    result = run(Probe(body, shape=(len(parts),), grid=(1, 1, 1)))
    assert result.out.tolist() == [65504, 2**-7, 1, -128, 1, 1]


VALUES = np.random.default_rng(0).normal(size=64).astype(np.float32)
GROUPS = VALUES.reshape(2, 32)
LANES = np.arange(32)


def spread(per_group: Array) -> Array:
    """A value a group, for all its lanes."""
    return np.repeat(np.asarray(per_group), 32)


SIMD: dict[str, Array] = {
    "simd_sum(a[i])": spread(GROUPS.sum(1)),
    "simd_product(a[i])": spread(GROUPS.prod(1)),
    "simd_min(a[i])": spread(GROUPS.min(1)),
    "simd_max(a[i])": spread(GROUPS.max(1)),
    "simd_shuffle(a[i], (i * 7) % 32)": GROUPS[:, LANES * 7 % 32],
    "simd_shuffle_xor(a[i], 5)": GROUPS[:, LANES ^ 5],
    "simd_shuffle_down(a[i], 3)": GROUPS[:, np.where(LANES < 29, LANES + 3, LANES)],
    "simd_shuffle_up(a[i], 3)": GROUPS[:, np.where(LANES >= 3, LANES - 3, LANES)],
    "simd_shuffle_rotate_down(a[i], 3)": np.roll(GROUPS, -3, axis=1),
    "simd_shuffle_rotate_up(a[i], 3)": np.roll(GROUPS, 3, axis=1),
    "simd_shuffle_and_fill_down(a[i], 9.0f, 3)": np.pad(GROUPS[:, 3:], ((0, 0), (0, 3)),
                                                        constant_values=9),
    "simd_shuffle_and_fill_up(a[i], 9.0f, 3)": np.pad(GROUPS[:, :-3], ((0, 0), (3, 0)),
                                                      constant_values=9),
    "simd_broadcast(a[i], 11)": spread(GROUPS[:, 11]),
    "simd_broadcast_first(a[i])": spread(GROUPS[:, 0]),
    "simd_prefix_inclusive_sum(a[i])": GROUPS.cumsum(1),
    "simd_prefix_exclusive_sum(a[i])": GROUPS.cumsum(1) - GROUPS,
    "simd_prefix_inclusive_product(a[i])": GROUPS.cumprod(1),
    "simd_and(int(i) | 6)": spread([6, 38]),
    "simd_or(int(i) << 1)": spread([62, 126]),
    "simd_xor(int(i))": spread([0, 0]),
    "simd_any(i == 40)": spread([0, 1]),
    "simd_all(i < 32)": spread([1, 0]),
    "ulong(simd_ballot(i % 32 == 20)) >> 16": spread([16, 16]),
    "simd_is_first()": np.tile(LANES == 0, 2),
    "quad_sum(float(i))": np.repeat(np.arange(64).reshape(16, 4).sum(1), 4),
    "quad_max(a[i])": np.repeat(VALUES.reshape(16, 4).max(1), 4),
    "quad_broadcast(a[i], 2)": np.repeat(VALUES.reshape(16, 4)[:, 2], 4),
    "simd_sum(float4(a[i], 1, 2, 3)).z": spread([64, 64]),
}  # fmt: skip


def test_simd_operations() -> None:
    body = " ".join(f"out[{k} * 64 + i] = {op};" for k, op in enumerate(SIMD))
    probe = Probe(body, [mx.array(VALUES)], (len(SIMD), 64))
    result = run(probe, orders=("forward", "reverse", "shuffled:5"))
    assert not result.findings
    for row, (operation, want) in zip(np.array(result.out), SIMD.items(), strict=True):
        np.testing.assert_allclose(row, want.reshape(-1), 1e-5, 1e-6, err_msg=operation)


VECTORS: dict[str, float] = {
    "float4(1, 2, 3, 4).w": 4,
    "float4(float2(1, 2), 3, 4).y": 2,
    "float4(7).z": 7,
    "vec<T, 3>(1, half2(2, 3)).z": 3,
    "pair(5, 6).y": 6,
    "int3(float3(1.7f, -1.7f, 2)).y": -1,
    "static_cast<half4>(float4(2049)).x": 2048,
    "((float2)3).y + (2 * (float4)half4(5)).x": 13,
    "dot(float3(1, 2, 3), float3(4, 5, 6))": 32,
    "length(float2(3, 4))": 5,
    "float4(1, 2, 3, 4).zyx.x": 3,
    "swap(float4(1, 2, 3, 4)).x": 2,
    "max(float2(1, 5), float2(3, 2)).x + max(float2(1, 5), 4.0f).y": 8,
    "clamp(float2(-3, 9), 0.0f, 1.0f).y": 1,
    "all(float2(1, 2) < float2(2, 3)) + any(int2(0, 0) != 0)": 1,
    "select(float2(1, 2), float2(3, 4), float2(1, 2) > 1.5f).y": 4,
    "select(1.0f, 2.0f, true)": 2,
    "as_type<int>(1.0f) >> 23": 127,
    "as_type<half2>(0x3c004000u).y": 1,
    "as_type<float>(as_type<uint>(1.5f))": 1.5,
    "sizeof(packed_float3) + sizeof(float3)": 28,
    "float3(*(const device packed_float3*)(a + 3)).z": 5,
    "clz(uint(255)) + popcount(0xF0Fu) + ctz(8)": 35,
    "clz(ushort(1))": 15,
    "mulhi(0x80000000u, 6u)": 3,
    "abs(int(-4)) + abs(-2.5f)": 6.5,
    "fma(2.0f, 3.0f, 1.0f) + mix(1.0f, 3.0f, 0.5f)": 9,
    "precise::exp(0.0f) + metal::fast::cos(0.0f) + fast::log(1.0f)": 2,
    "table[2]": 30,
}
VECTOR_HEADER = """
using pair = vec<float, 2>;
constant float table[3] = {10, 20, 30};
inline float4 swap(float4 v) { v.xy = v.yx; return v; }
"""


def test_vectors_and_small_things() -> None:
    body = " ".join(f"out[{k}] = {expression};" for k, expression in enumerate(VECTORS))
    probe = Probe(
        body, [mx.arange(64).astype(mx.float32)], (len(VECTORS),), grid=(1, 1, 1),
        template=[("T", mx.float32)], header=VECTOR_HEADER,
    )  # fmt: skip
    result = run(probe)
    assert not result.findings
    got = dict(zip(VECTORS, result.out.tolist(), strict=True))
    assert got == VECTORS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matrix_multiply(dtype: mx.Dtype) -> None:
    x, y = (mx.random.normal((8, 16), key=mx.random.key(k)).astype(dtype) for k in range(2))
    body = """
        simdgroup_matrix<T, 8, 8> left, right;
        simdgroup_matrix<float, 8, 8> sum(0.0f);
        for (int k = 0; k < 16; k += 8) {
            simdgroup_load(left, a, 16, ulong2(k, 0));
            simdgroup_load(right, b, 16, ulong2(k, 0), true);
            simdgroup_multiply_accumulate(sum, left, right, sum);
        }
        threadgroup float tile[64];
        simdgroup_store(sum, tile, 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_load(sum, tile, 8);
        simdgroup_store(sum, out, 8);
    """
    probe = Probe(
        body, [x, y], (8, 8), grid=(32, 1, 1), threadgroup=(32, 1, 1), template=[("T", dtype)]
    )
    result = run(probe, orders=("forward", "shuffled:1"))
    assert not result.findings
    np.testing.assert_allclose(np.array(result.out), exact(x) @ exact(y).T, 1e-5, 1e-5)


def test_atomics() -> None:
    bins = np.random.default_rng(1).integers(0, 8, 256)
    body = "atomic_fetch_add_explicit(&out[a[i]], 1u, memory_order_relaxed);"
    probe = Probe(
        body, [mx.array(bins.astype(np.int32))], (8,), mx.uint32, (256, 1, 1), (32, 1, 1),
        init_value=0, atomic_outputs=True,
    )  # fmt: skip
    result = run(probe, orders=("forward", "reverse"))
    assert not result.findings
    assert result.launch.atomics == 256
    np.testing.assert_array_equal(np.array(result.out), np.bincount(bins, minlength=8))


def test_atomic_maximum_and_compare_exchange_in_threadgroup_memory() -> None:
    body = """
        threadgroup atomic_int top;
        threadgroup atomic<float> total;
        if (i == 0) {
            atomic_store_explicit(&top, -1, memory_order_relaxed);
            atomic_store_explicit(&total, 0.0f, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        atomic_fetch_max_explicit(&top, int(a[i]), memory_order_relaxed);
        float seen = atomic_load_explicit(&total, memory_order_relaxed);
        while (!atomic_compare_exchange_weak_explicit(
            &total, &seen, seen + a[i], memory_order_relaxed, memory_order_relaxed)) { }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        out[i] = i % 2 ? atomic_load_explicit(&top, memory_order_relaxed)
                       : atomic_load_explicit(&total, memory_order_relaxed);
    """
    result = run(Probe(body, [mx.arange(64).astype(mx.float32)]), ("forward", "shuffled:2"))
    assert not result.findings
    assert result.out.tolist() == [2016, 63] * 32
