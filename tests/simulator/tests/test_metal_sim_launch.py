"""The simulator launches as ``mx.fast.metal_kernel`` does: signature, grid, inputs, outputs."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import metal_sim
from metal_sim.probe import Probe, run

metal_sim.skip_unless_available()

EXP = """
uint elem = thread_position_in_grid.x;
T tmp = inp[elem];
out[elem] = metal::exp(tmp);
"""


def myexp(**options: Any) -> Any:
    """The kernel of MLX's documentation."""
    return mx.fast.metal_kernel(
        name="myexp", input_names=["inp"], output_names=["out"], source=EXP, **options
    )


def call(kernel: Any, a: mx.array, **options: Any) -> mx.array:
    """Call it as the documentation does."""
    arguments = {
        "inputs": [a],
        "template": [("T", mx.float32)],
        "grid": (a.size, 1, 1),
        "threadgroup": (256, 1, 1),
        "output_shapes": [a.shape],
        "output_dtypes": [a.dtype],
    }
    return kernel(**{**arguments, **options})[0]


def test_the_documented_example(capsys: pytest.CaptureFixture[str]) -> None:
    a = mx.random.normal(shape=(4, 16)).astype(mx.float16)
    with metal_sim.installed():
        b = call(myexp(), a, verbose=True)
    assert mx.allclose(b, mx.exp(a), rtol=1e-3)
    name = "custom_kernel_myexp__float_float16_t_float16_t"
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"template <typename T> [[kernel]] void {name}( "
        "const device float16_t* inp [[buffer(0)]], device float16_t* out [[buffer(1)]], "
        "uint3 thread_position_in_grid [[thread_position_in_grid]]) { uint elem"
    ) in printed
    assert f'host_name("{name}")]] [[kernel]] decltype({name}<float>) {name}<float>;' in printed


def test_small_inputs_are_constant_and_scalars_references(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with metal_sim.installed():
        kernel = mx.fast.metal_kernel(
            name="k",
            input_names=["a", "b", "c", "n", "yes"],
            output_names=["out", "more"],
            source="out[0] = a + b[6] + c[7] + b_shape[0] + c_strides[0] + c_ndim + n + yes;"
            "more[0] = a;",
        )
        out, more = kernel(
            inputs=[mx.array(1.5), mx.arange(7), mx.arange(8), 3, True],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(), (1, 1)],
            output_dtypes=[mx.float32, mx.float16],
            verbose=True,
        )
    assert out.item() == 1.5 + 6 + 7 + 7 + 1 + 1 + 3 + 1
    assert more.shape == (1, 1)
    printed = capsys.readouterr().out
    for position, parameter in enumerate(
        [
            "const constant float& a",
            "const constant int32_t* b",
            "const constant int* b_shape",
            "const device int32_t* c",
            "const constant int64_t* c_strides",
            "const constant int& c_ndim",
            "const constant int32_t& n",
            "const constant bool& yes",
            "device float* out",
            "device float16_t* more",
        ]
    ):
        assert f"  {parameter} [[buffer({position})]]" in printed


THREAD_FIELDS = [
    "thread_position_in_grid.x", "thread_position_in_grid.y", "thread_position_in_grid.z",
    "thread_position_in_threadgroup.x", "threadgroup_position_in_grid.y",
    "threads_per_threadgroup.x", "threads_per_threadgroup.y", "dispatch_threads_per_threadgroup.x",
    "threads_per_grid.y", "threadgroups_per_grid.x", "thread_index_in_threadgroup",
    "thread_index_in_simdgroup", "simdgroup_index_in_threadgroup", "simdgroups_per_threadgroup",
    "thread_execution_width", "thread_index_in_quadgroup", "grid_size.z",
]  # fmt: skip


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled:4"])
def test_a_grid_counts_threads_and_its_edges_are_smaller(order: str) -> None:
    grid, group = (10, 7, 3), (4, 5, 2)
    n = len(THREAD_FIELDS)
    body = (
        "uint at = ((thread_position_in_grid.z * 7 + thread_position_in_grid.y) * 10 + i);"
        + " ".join(f"out[at * {n} + {k}] = {field};" for k, field in enumerate(THREAD_FIELDS))
    )
    result = run(Probe(body, (), (3, 7, 10, n), mx.int32, grid, group), [order])
    assert not result.findings
    got = np.array(result.out)
    for z, y, x in np.ndindex(3, 7, 10):
        width, height = min(4, 10 - x // 4 * 4), min(5, 7 - y // 5 * 5)
        depth = min(2, 3 - z // 2 * 2)
        index = (z % 2 * height + y % 5) * width + x % 4
        threads = width * height * depth
        want = [x, y, z, x % 4, y // 5, width, height, 4, 7, 3, index]
        want += [index % 32, index // 32, -(-threads // 32), 32, index % 4, 3]
        assert got[z, y, x].tolist() == want
    assert result.launch.threads == 210
    assert result.launch.threadgroups == 3 * 2 * 2


def test_a_threadgroup_larger_than_the_grid_is_cut() -> None:
    body = "out[i] = threads_per_threadgroup.x * 100 + dispatch_threads_per_threadgroup.x;"
    result = run(Probe(body, (), (5,), mx.int32, (5, 1, 1), (64, 1, 1)))
    assert result.out.tolist() == [505] * 5


STRIDED = {
    "transposed": lambda x: x.T,
    "every other": lambda x: x[::2, 1::3],
    "backwards": lambda x: x[::-1, ::-2],
    "broadcast": lambda x: mx.broadcast_to(x[3], (4, 9)),
    "contiguous": lambda x: x,
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", STRIDED)
def test_strides_are_passed_or_a_copy_is_made(name: str, dtype: mx.Dtype) -> None:
    x = STRIDED[name](mx.arange(72).reshape(8, 9).astype(dtype))
    strided = "out[i] = a[elem_to_loc<int64_t>(i, a_shape, a_strides, a_ndim)] + 1;"
    grid = (x.size, 1, 1)
    for source, copied in ((strided, False), ("out[i] = a[i] + 1;", True), (strided, True)):
        probe = Probe(source, [x], x.shape, dtype, grid, ensure_row_contiguous=copied)
        result = run(probe)
        assert not result.findings
        assert mx.array_equal(result.out, x + 1)


INTEGERS = [
    mx.int8, mx.uint8, mx.int16, mx.uint16, mx.int32, mx.uint32, mx.int64, mx.uint64
]  # fmt: skip


@pytest.mark.parametrize("dtype", [*INTEGERS, mx.bool_, mx.float16, mx.complex64], ids=str)
def test_every_dtype_comes_and_goes(dtype: mx.Dtype) -> None:
    x = (mx.arange(64) - 10).astype(dtype)
    if dtype == mx.complex64:
        x = x + mx.array(2j)
    result = run(Probe("out[i] = a[63 - i];", [x], dtype=dtype))
    assert not result.findings
    assert result.out.dtype == dtype
    assert mx.array_equal(result.out, x[::-1])


def test_template_arguments() -> None:
    body = "out[i] = FLAG ? static_cast<T>(K) : static_cast<T>(i);"
    for flag, want in ((True, -3), (False, 5)):
        template = [("T", mx.int8), ("K", 3), ("FLAG", flag)]
        result = run(Probe(body.replace("K", "-K"), (), (64,), mx.float32, template=template))
        assert result.out[5].item() == want


def test_initial_values() -> None:
    probe = Probe("if (i < 8) { out[i] += 1; }", dtype=mx.bfloat16, init_value=2.5)
    result = run(probe)
    assert not result.findings
    assert result.out.tolist() == [3.5] * 8 + [2.5] * 56


def test_counters() -> None:
    body = """
        threadgroup float s[32];
        s[i % 32] = a[i] + a[i / 2] + b;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        out[i] = simd_sum(s[i % 32]) + simd_max(1.0f);
    """
    probe = Probe(body, [mx.ones((128,)), 2.0], (64,), threadgroup=(32, 1, 1))
    launch = run(probe, orders=("forward", "reverse")).launch
    a, b, out = launch.inputs["a"], launch.inputs["b"], launch.outputs["out"]
    assert (a.size, a.loaded, a.unique_loaded, a.stored) == (512, 64 * 8, 64 * 4, 0)
    assert (b.size, b.loaded, b.unique_loaded) == (4, 64 * 4, 4)
    assert (out.stored, out.unique_stored, out.loaded) == (256, 256, 0)
    shared = launch.threadgroup["s"]
    assert (shared.size, shared.loaded, shared.unique_stored) == (128, 256, 128)
    assert (launch.barriers, launch.simd_operations, launch.simd_barriers) == (2, 4, 0)
    assert launch.unique_bytes == 256 + 4 + 256
    assert (launch.loaded, launch.stored) == (512 + 256, 256)
    assert launch.threadgroup_bytes == 128


def test_it_refuses_what_mlx_refuses() -> None:
    a = mx.ones((4,))
    with metal_sim.installed():
        kernel = myexp()
        for wrong in ({"inputs": []}, {"output_shapes": []}, {"output_dtypes": [mx.float32] * 2}):
            with pytest.raises(ValueError, match="Expected `"):
                call(kernel, a, **wrong)
        with pytest.raises(ValueError, match="Invalid template argument"):
            call(kernel, a, template=[("T", 1.5)])
        with pytest.raises(ValueError, match="Only supports the GPU"):
            call(kernel, a, stream=mx.cpu)
        with pytest.raises(ValueError, match="at least one output"):
            mx.fast.metal_kernel("k", ["a"], [], "")
        with pytest.raises(metal_sim.CompileError, match="myexp:5:1: error: use of undeclared"):
            call(mx.fast.metal_kernel("myexp", ["inp"], ["out"], EXP + "nonsense();"), a)
    with pytest.raises(RuntimeError, match="No Metal back-end"):
        call(kernel, a)


def test_everything_is_put_back() -> None:
    before = (mx.fast.metal_kernel, mx.metal.is_available, mx.default_device, mx.new_stream)
    with metal_sim.installed():
        assert mx.metal.is_available()
        assert mx.default_device() == mx.gpu
        mx.new_stream(mx.default_device())
    with pytest.raises(ZeroDivisionError), metal_sim.installed():
        raise ZeroDivisionError
    after = (mx.fast.metal_kernel, mx.metal.is_available, mx.default_device, mx.new_stream)
    assert before == after


def test_kernels_run_inside_compiled_functions_and_other_threads() -> None:
    a = mx.arange(8).astype(mx.float32)
    mx.eval(a)  # an unevaluated array belongs to the thread that made it
    results: list[mx.array] = []
    with metal_sim.installed() as sim:
        kernel = myexp()
        compiled = mx.compile(lambda x: call(kernel, x * 2) + 1)

        def work() -> None:
            result = compiled(a)
            mx.eval(result)
            results.append(result)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(sim.launches) == len(results) == 4
    for result in results:
        assert mx.allclose(result, mx.exp(a * 2) + 1)


def test_several_declarations_of_threadgroup_memory() -> None:
    body = """
        /* threadgroup float wrong; */
        threadgroup float first[2][32], second[32]; // threadgroup int more[4];
        threadgroup int last;
        threadgroup float* row = first[i / 32];
        row[i % 32] = i; second[i % 32] = 1;
        if (i == 0) { last = 7; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        out[i] = first[0][31 - i] + second[i] + last + count(second);
    """
    header = "inline float count(const threadgroup float* part) { return part[0]; }"
    probe = Probe(body, (), (32,), grid=(32, 1, 1), threadgroup=(32, 1, 1), header=header)
    result = run(probe)
    assert not result.findings
    assert result.out.tolist() == [31 - i + 9 for i in range(32)]
    assert result.launch.threadgroup_bytes == 256 + 128 + 16


def test_what_no_check_would_see_is_refused() -> None:
    for wide in ("const device long4*", "const device vec<int64_t, 3>*"):
        with pytest.raises(metal_sim.CompileError, match="over 16 bytes are not simulated"):
            run(Probe(f"auto p = ({wide})a; out[i] = p[i].x;", [mx.arange(64)]))
    narrow = "auto p = (const device long2*)a; long4 v = long4(p[0], p[1]); out[i] = v.x + v.w;"
    result = run(Probe(narrow, [mx.arange(64).astype(mx.int64)]))
    assert not result.findings
    assert result.out[0].item() == 3


OUTSIDE = """
import os
import mlx.core as mx
import metal_sim

with metal_sim.installed():
    metal_sim.toolchain.cache_folder()
    os.chdir("/")
    kernel = mx.fast.metal_kernel(
        name="twice", input_names=["inp"], output_names=["out"],
        source="uint i = thread_position_in_grid.x; out[i] = 2 * inp[i];",
    )
    a = mx.array([1.0, 2.0])
    (out,) = kernel(inputs=[a], output_shapes=[a.shape], output_dtypes=[a.dtype],
                    grid=(2, 1, 1), threadgroup=(2, 1, 1))
    print(out.tolist())
"""


def test_a_script_needs_no_pytest_and_may_change_folders(tmp_path: Path) -> None:
    """Neither a relative cache folder, nor the place it is run from, nor pytest matters."""
    hidden = tmp_path / "pytest.py"
    hidden.write_text("raise ImportError")
    package = Path(metal_sim.__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{package}",
        "MLX_SPEC_METAL_SIM_CACHE": "kept",
    }
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.stdout == b"[2.0, 4.0]\n", done.stderr.decode()
    assert list((tmp_path / "kept").glob("twice-*.so"))


def test_a_compiler_that_makes_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process ignores SIGCHLD no exit code comes back, not even of a failed compiler."""

    def silent(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 0, "", "killed")

    monkeypatch.setattr(metal_sim.toolchain, "run", silent)
    with pytest.raises(metal_sim.CompileError, match=r"nothing does not compile:\nkilled"):
        metal_sim.toolchain.build("int nothing;", ["-O0"], "nothing")
