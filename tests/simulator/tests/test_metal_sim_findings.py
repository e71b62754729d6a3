"""Each kind of finding: a kernel that deserves it, and its healthy twin that does not."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import metal_sim
from metal_sim.findings import KINDS
from metal_sim.probe import Probe, run

metal_sim.skip_unless_available()

A = mx.arange(64).astype(mx.float32)
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@dataclass(frozen=True)
class Case:
    """A kind of finding, a body that has it, and one beside it that has nothing."""

    name: str
    kind: str
    bad: str
    good: str
    good_init: float | None = None


def case(name: str, kind: str, bad: str, good: str, good_init: float | None = None) -> Any:
    """A parameter with a readable name."""
    return pytest.param(Case(name, kind, bad, good, good_init), id=name)


CASES = [
    case("load past the end", "out_of_bounds", "out[i] = a[i + 1];", "out[i] = a[i];"),
    case("load before the start", "out_of_bounds", "out[i] = a[int(i) - 1];",
         "out[i] = a[max(int(i) - 1, 0)];"),
    case("load far away", "out_of_bounds", "out[i] = a[i * 10000000];", "out[i] = a[i];"),
    case("store past the end", "out_of_bounds", "out[i] = 0; out[i + 1] = a[i];",
         "out[i] = 0; if (i + 1 < 64) { out[i] = a[i]; }"),
    case("half a vector past the end", "out_of_bounds",
         "out[i] = ((const device packed_float2*)(a + i))[0].y;",
         "out[i] = ((const device packed_float2*)(a + min(i, 62u)))[0].y;"),
    case("threadgroup memory past the end", "out_of_bounds",
         f"threadgroup float s[64]; threadgroup float* p = s; p[i] = a[i]; {BARRIER}"
         "out[i] = p[i + 1];",
         f"threadgroup float s[64]; threadgroup float* p = s; p[i] = a[i]; {BARRIER}"
         "out[i] = p[i ^ 1];"),
    case("two threads store one element", "race", "out[i] = 0; out[i ^ 1] = a[i];",
         "out[i] = 0; out[i] = a[i ^ 1];"),
    case("no barrier", "race",
         "threadgroup float s[64]; s[i] = a[i]; out[i] = s[63 - i];",
         f"threadgroup float s[64]; s[i] = a[i]; {BARRIER} out[i] = s[63 - i];"),
    case("barrier for other memory", "race",
         "threadgroup float s[64]; s[i] = a[i]; threadgroup_barrier(mem_flags::mem_device);"
         "out[i] = s[63 - i];",
         "threadgroup float s[64]; s[i] = a[i];"
         "threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);"
         "out[i] = s[63 - i];"),
    case("barrier that orders nothing", "race",
         "threadgroup float s[64]; s[i] = a[i]; threadgroup_barrier(mem_flags::mem_none);"
         "out[i] = s[63 - i];",
         f"threadgroup float s[64]; s[i] = a[i]; {BARRIER} out[i] = s[63 - i];"),
    case("buffer reused too early", "race",
         f"threadgroup float s[64]; s[i] = a[i]; {BARRIER} float x = s[63 - i];"
         f"s[i] = x; {BARRIER} out[i] = s[i];",
         f"threadgroup float s[64]; s[i] = a[i]; {BARRIER} float x = s[63 - i]; {BARRIER}"
         f"s[i] = x; {BARRIER} out[i] = s[i];"),
    case("simdgroup barrier across simdgroups", "race",
         "threadgroup float s[64]; s[i] = a[i]; simdgroup_barrier(mem_flags::mem_threadgroup);"
         "out[i] = s[63 - i];",
         "threadgroup float s[64]; s[i] = a[i]; simdgroup_barrier(mem_flags::mem_threadgroup);"
         "out[i] = s[i ^ 31];"),
    case("a simdgroup without its barrier", "race",
         "threadgroup float s[64]; s[i] = a[i]; simd_sum(1.0f); out[i] = s[i ^ 1];",
         "threadgroup float s[64]; s[i] = a[i]; simdgroup_barrier(mem_flags::mem_threadgroup);"
         "simd_sum(1.0f); out[i] = s[i ^ 1];"),
    case("device memory across a threadgroup barrier", "race",
         f"out[i] = a[i]; {BARRIER} float x = out[63 - i]; {BARRIER} out[i] = x;",
         "out[i] = a[i]; threadgroup_barrier(mem_flags::mem_device); float x = out[63 - i];"
         "threadgroup_barrier(mem_flags::mem_device); out[i] = x;"),
    case("plain beside atomic", "race",
         "threadgroup atomic_uint n; if (i == 0) { n.value = 0; }"
         "atomic_fetch_add_explicit(&n, 1u, memory_order_relaxed); out[i] = a[i];",
         "threadgroup atomic_uint n;"
         "if (i == 0) { atomic_store_explicit(&n, 0u, memory_order_relaxed); }" + BARRIER +
         "atomic_fetch_add_explicit(&n, 1u, memory_order_relaxed); out[i] = a[i];"),
    case("plain after atomic", "race",
         "threadgroup atomic_uint n; atomic_store_explicit(&n, i, memory_order_relaxed);"
         "out[i] = *(threadgroup uint*)&n;",
         "threadgroup atomic_uint n; atomic_store_explicit(&n, i / 64, memory_order_relaxed);"
         "out[i] = atomic_load_explicit(&n, memory_order_relaxed);"),
    case("threadgroup memory nobody wrote", "uninitialised",
         f"threadgroup float s[64]; if (i < 32) {{ s[i] = a[i]; }} {BARRIER} out[i] = s[i];",
         f"threadgroup float s[64]; if (i < 32) {{ s[i] = a[i]; }} {BARRIER} out[i] = s[i % 32];"),
    case("output read before it is written", "uninitialised", "out[i] += a[i];",
         "out[i] = a[i]; out[i] += a[i];"),
    case("output never written", "unwritten", "if (i < 63) { out[i] = a[i]; }",
         "if (i < 63) { out[i] = a[i]; }", 0.0),
    case("barrier in a branch", "divergent_barrier",
         f"if (i < 40) {{ {BARRIER} }} out[i] = a[i];",
         f"if (i < 40) {{ out[i] = 0; }} {BARRIER} out[i] = a[i];"),
    case("barrier after some have returned", "divergent_barrier",
         f"if (i >= 32) {{ out[i] = 0; return; }} {BARRIER} out[i] = a[i];",
         f"{BARRIER} if (i >= 32) {{ out[i] = 0; return; }} out[i] = a[i];"),
    case("two barriers for one", "divergent_barrier",
         f"if (i < 32) {{ {BARRIER} out[i] = 1; }} else {{ {BARRIER} out[i] = 2; }}",
         f"{BARRIER} if (i < 32) {{ out[i] = 1; }} else {{ out[i] = 2; }}"),
    case("simd operation in a branch", "divergent_simd",
         "float x = a[i]; if (i % 2) { x = simd_sum(x); } out[i] = simd_max(x);",
         "float x = a[i]; if (i < 32) { x = simd_sum(x); } out[i] = simd_max(x);"),
    case("simd operation beside a barrier", "divergent_simd",
         f"float x = a[i]; if (i % 2) {{ x = simd_sum(x); }} {BARRIER} out[i] = x;",
         f"float x = a[i]; x = simd_sum(x); {BARRIER} out[i] = x;"),
    case("two simd operations for one", "divergent_simd",
         "float x; if (i % 2) { x = simd_sum(a[i]) + 1; } else { x = simd_sum(a[i]) + 2; }"
         "out[i] = x;",
         "float x = simd_sum(a[i]); if (i % 2) { x += 1; } else { x += 2; } out[i] = x;"),
    case("loops of different length", "divergent_simd",
         "float x = 0; for (uint n = 0; n < i % 3; n++) { x += simd_sum(1.0f); }"
         "out[i] = simd_max(x);",
         "float x = 0; for (uint n = 0; n < 3; n++) { x += simd_sum(1.0f); }"
         "out[i] = simd_max(x);"),
    case("shuffle from a lane that has ended", "inactive_lane",
         "out[i] = a[i]; if (i % 32 == 31) { return; } out[i] = simd_shuffle_xor(a[i], 1);",
         "out[i] = a[i]; if (i >= 32) { return; } out[i] = simd_shuffle_xor(a[i], 1);"),
    case("shuffle from lane 32", "inactive_lane", "out[i] = simd_shuffle(a[i], i % 32 + 1);",
         "out[i] = simd_shuffle(a[i], i % 32 ^ 1);"),
    case("misaligned vector", "misaligned", "out[i] = ((const device float4*)(a + 1))[0].x;",
         "out[i] = ((const device float4*)(a + 4))[0].x;"),
    case("too much threadgroup memory", "threadgroup_memory",
         "threadgroup float s[8193]; s[i] = a[i]; out[i] = s[i];",
         "threadgroup float s[8192]; s[i] = a[i]; out[i] = s[i];"),
    case("input written", "input_write",
         "const_cast<device float*>(a)[i] = 1; out[i] = a[i];",
         "out[i] = 1; out[i] = a[i];"),
    case("integer division by zero", "division_by_zero", "out[i] = int(i) / int(a[0]);",
         "out[i] = int(i) / int(a[1]);"),
    case("integer remainder by zero", "division_by_zero", "out[i] = i % uint(a[i]);",
         "out[i] = i % uint(a[i] + 1);"),
    case("endless loop", "endless_loop", "out[i] = 0; while (out[i] < 1) { out[i] += a[0]; }",
         "out[i] = 0; while (out[i] < 1) { out[i] += a[1]; }"),
    case("endless loop without memory", "endless_loop", "while (true) { } out[i] = a[i];",
         "while (i > 64) { } out[i] = a[i];"),
    case("thread array past the end", "array_bounds",
         "float v[4] = {0, 1, 2, 3}; out[i] = v[int(a[i])];",
         "float v[4] = {0, 1, 2, 3}; out[i] = v[int(a[i]) % 4];"),
    case("a pointer into nowhere", "crash", "out[i] = *(device float*)(ulong(a[i]) + 64);",
         "out[i] = *(const device float*)(ulong(a) + 64);"),
    case("order shows", "order_dependent",  # a static is memory that no other check sees
         "static int n = 0; n = n % 64 + 1; out[i] = n;", "int n = 0; n += i; out[i] = n;"),
    case("device pointer into a threadgroup pointer", "address_space",
         "threadgroup float s[64]; threadgroup float* p = s; p = out; out[i] = a[i];",
         "threadgroup float s[64]; threadgroup float* p = s; p += 1; out[i] = a[i];"),
    case("pointer without address space", "address_space",
         "float x = a[i]; float* p = &x; out[i] = *p;",
         "float x = a[i]; thread float* p = &x; out[i] = *p;"),
    case("reference without address space", "address_space",
         "float x = a[i]; float& y = x; out[i] = y;",
         "float x = a[i]; thread float& y = x; out[i] = y;"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_finding_and_healthy_twin(case: Case) -> None:
    orders = ("forward", "shuffled:3")
    bad = run(Probe(case.bad, [A]), orders, max_steps=100_000)
    assert case.kind in bad.kinds, bad.findings
    good = run(Probe(case.good, [A], init_value=case.good_init), orders)
    assert not good.findings


def test_every_kind_is_tested_and_described() -> None:
    here = {case.values[0].kind for case in CASES} | {"implicit_bfloat", "threadgroup_size"}
    assert here == set(KINDS.values())
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert not [kind for kind in KINDS.values() if f"`{kind}`" not in readme]


BFLOAT_CASES = [
    ("out[i] = a[i] * 2.0f;", "out[i] = static_cast<bfloat16_t>(a[i] * 2.0f);"),
    ("bfloat16_t x = 0.0f; out[i] = x + a[i];", "bfloat16_t x = 0; out[i] = x + a[i];"),
    ("bfloat16_t x = a[i]; x += 1.5f; out[i] = x;", "float x = a[i]; x += 1.5f; out[i] = T(x);"),
    ("out[i] = simd_sum(float(a[i]));", "out[i] = T(simd_sum(float(a[i])));"),
    (
        "T x = a[i] / 2 * 1.5f; out[i] = x;",
        "T x = a[i] / 2 * T(1.5f); out[i] = x < a[i] ? x : T(1);",
    ),
]


@pytest.mark.parametrize(("bad", "good"), BFLOAT_CASES)
def test_float_does_not_silently_become_bfloat(bad: str, good: str) -> None:
    inputs = [A.astype(mx.bfloat16)]
    probe = Probe(bad, inputs, dtype=mx.bfloat16, template=[("T", mx.bfloat16)])
    assert run(probe).kinds == {"implicit_bfloat"}
    assert not run(replace(probe, source=good)).findings


def test_pointers_of_functions_are_checked_too() -> None:
    header = "template <typename T> T third({} T* p) {{ return p[3]; }}\n"
    probe = Probe("out[i] = third(a);", [A], header=header.format("const device"))
    assert not run(probe).findings
    wrong = run(replace(probe, header=header.format("const threadgroup")))
    missing = run(replace(probe, header=header.format("const")))
    assert wrong.kinds == missing.kinds == {"address_space"}
    assert {finding.line for finding in missing.findings} == {"header:1"}


def test_threadgroups_are_unordered() -> None:
    body = "out[thread_position_in_threadgroup.x] = a[i];"
    racing = run(Probe(body, [A], shape=(32,), threadgroup=(32, 1, 1)))
    assert racing.kinds == {"race"}
    assert not run(Probe("out[i] = a[i];", [A], threadgroup=(32, 1, 1))).findings

    wait = "threadgroup_barrier(mem_flags::mem_device);"
    later = f"if (i >= 32) {{ {wait} }} out[i % 32] = a[i];"  # also at another of their times
    assert run(Probe(later, [A], shape=(32,), threadgroup=(32, 1, 1))).kinds == {"race"}


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_race_is_found_whoever_comes_first(order: str) -> None:
    """Load before store and store before load, by two threads of a simdgroup; also atomics."""
    body = (
        f"threadgroup float s[64]; s[i] = a[i]; {BARRIER}"
        + """
        out[i] = 0;
        if (i == 3) { out[i] = s[8]; }
        if (i == 8) { s[8] = 1; }
    """
    )
    assert run(Probe(body, [A]), [order]).kinds == {"race"}
    atomic = "atomic_store_explicit((threadgroup atomic_uint*)&s[8], 1u, memory_order_relaxed);"
    assert run(Probe(body.replace("s[8] = 1;", atomic), [A]), [order]).kinds == {"race"}


def test_each_threadgroup_has_its_own_memory() -> None:
    body = f"threadgroup float s[32]; if (i < 32) {{ s[i] = a[i]; }} {BARRIER} out[i] = s[i % 32];"
    found = run(Probe(body, [A], threadgroup=(32, 1, 1))).findings
    assert [(finding.kind, finding.count) for finding in found] == [("uninitialised", 32)]
    assert not run(Probe(body.replace("i < 32", "true").replace("s[i]", "s[i % 32]"), [A],
                         threadgroup=(32, 1, 1))).findings  # fmt: skip


def test_partial_simdgroup_has_inactive_lanes() -> None:
    probe = Probe("out[i] = simd_shuffle_down(a[i], 1);", [A], shape=(40,), grid=(40, 1, 1))
    assert run(probe).kinds == {"inactive_lane"}
    summed = run(replace(probe, source="out[i] = simd_sum(a[i]);"))
    assert not summed.findings
    assert summed.out[39].item() == sum(range(32, 40))


def test_too_many_threads_a_threadgroup() -> None:
    probe = Probe("out[i] = a[i];", [A], threadgroup=(1025, 1, 1))
    with pytest.raises(metal_sim.MetalFinding, match="1025 threads a threadgroup"):
        run(probe)
    assert not run(replace(probe, threadgroup=(1024, 1, 1))).findings


def test_a_finding_says_where() -> None:
    body = "\nfloat x = a[0];\nout[i] = x +\n    a[i + 60];"
    probe = Probe(body, [mx.arange(100).astype(mx.int16)], grid=(64, 1, 1), threadgroup=(32, 1, 1))
    found = run(probe).findings
    assert [str(finding) for finding in found] == [
        "[probe] out_of_bounds: thread 8 of threadgroup (1, 0, 0) loads 2 bytes at a[100], "
        "which has 100 elements at probe:4 (24 times)"
    ]
    assert (found[0].buffer, found[0].index, found[0].thread) == ("a", 100, 8)


def test_launches_go_on_after_a_crash() -> None:
    crash = Probe("out[i] = *(device float*)(ulong(i) + 64);")
    for _ in range(3):
        assert "crash" in run(crash).kinds
        healthy = run(Probe("out[i] = a[i];", [A]))
        assert not healthy.findings
        np.testing.assert_array_equal(np.array(healthy.out), np.arange(64))


def test_findings_raise_unless_collected() -> None:
    with metal_sim.installed() as sim:
        kernel = mx.fast.metal_kernel(
            name="short", input_names=["a"], output_names=["out"], source="out[0] = a[1];"
        )
        arguments = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)]}
        with pytest.raises(metal_sim.MetalFinding, match=r"\[short\] out_of_bounds"):
            kernel(inputs=[mx.array([1.0])], output_dtypes=[mx.float32], **arguments)
        assert [finding.kind for finding in sim.take_findings()] == ["out_of_bounds"]
    swallowed = contextlib.suppress(metal_sim.MetalFinding)
    with pytest.raises(metal_sim.MetalFinding), metal_sim.installed(), swallowed:
        kernel(inputs=[mx.array([1.0])], output_dtypes=[mx.float32], **arguments)
