"""The fast BLAS: found, overridden, refused, harmless at exit. Each case is a fresh process,
because what is decided before mlx is imported cannot be decided twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_spec import blas, platform
from mlx_spec.errors import MlxSpecError

linux = pytest.mark.skipif(sys.platform != "linux", reason="MLX needs no BLAS of ours elsewhere")

PENDING_WORK = """
from mlx_spec.platform import ensure_blas
ensure_blas()
import mlx.core as mx
a = mx.random.normal((256, 256)); mx.eval(a); b = a
for _ in range(400): b = mx.tanh(b @ a)
mx.async_eval(b)
"""


def python(code: str, blas: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, with ``MLX_SPEC_BLAS`` as given or unset."""
    environment = {k: v for k, v in os.environ.items() if k != platform.BLAS_VARIABLE}
    if blas is not None:
        environment[platform.BLAS_VARIABLE] = blas
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def status(code: str, blas: str | None = None) -> str:
    run = python(f"from mlx_spec.platform import ensure_blas\n{code}", blas)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def fast_blas() -> str:
    """The path of the fast BLAS that the search finds here."""
    path = status("print(ensure_blas().path)").strip()
    if path == "None":
        pytest.skip("no fast BLAS on this machine")
    return path


@linux
def test_off_leaves_the_global_scope_alone() -> None:
    shown = status("s = ensure_blas(); print(s.fast, s.path, s.reason)", "off")
    assert shown.startswith("False None")
    assert "MLX_SPEC_BLAS=off" in shown


@linux
@pytest.mark.parametrize("wish", [None, "auto", "AUTO", "", "path"])
def test_a_fast_blas_is_loaded_once_and_mlx_still_multiplies(
    wish: str | None, fast_blas: str
) -> None:
    code = """
s = ensure_blas()
assert s.fast and ensure_blas() is s
import ctypes; ctypes.CDLL(None).cblas_sgemm
import mlx.core as mx
a = mx.arange(12).astype(mx.float32).reshape(3, 4)
assert (a @ a.T).tolist() == [[14, 38, 62], [38, 126, 214], [62, 214, 366]]
"""
    status(code, fast_blas if wish == "path" else wish)


@linux
@pytest.mark.parametrize(
    ("wish", "words"),
    [("/nothing.so", "cannot be loaded"), ("of", "cannot be loaded"), ("libm.so.6", "cblas_sgemm")],
)
def test_a_wish_that_is_no_blas_is_refused(wish: str, words: str) -> None:
    run = python("from mlx_spec.platform import ensure_blas\nensure_blas()", wish)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert "MlxSpecError" in last
    assert words in last
    assert repr(wish) in last


@linux
def test_mlx_imported_first_is_said_once_by_load(fast_blas: str) -> None:
    code = """
import warnings, mlx.core
from mlx_spec import load
from mlx_spec.platform import describe
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2): load("demo-draft")
print(len(caught), caught[0].category.__name__, caught[0].filename, caught[0].message)
print(describe().advice)
"""
    said, advice = status(code).splitlines()
    assert said.startswith("1 RuntimeWarning <string> ")
    assert "mlx was imported first; import mlx_spec before mlx" in said
    # Not "install OpenBLAS": it lies there, and came too late.
    assert advice == "import mlx_spec before mlx, mlx_lm and what imports them"


@linux
def test_a_blas_that_is_there_already_is_kept(fast_blas: str) -> None:
    code = f"import ctypes; ctypes.CDLL({fast_blas!r}, mode=ctypes.RTLD_GLOBAL)\n"
    shown = status(f"{code}s = ensure_blas(); print(s.fast, s.path, s.reason)")
    assert shown.split() == ["True", fast_blas, "already", "loaded", "in", "this", "process"]


@linux
@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt", "raise SystemExit(3)"])
def test_a_process_with_work_in_flight_ends(ending: str, fast_blas: str) -> None:
    # Without the exit hook about every third such process hangs for ever in OpenBLAS.
    codes = [python(PENDING_WORK + ending).returncode for _ in range(4)]
    assert len(set(codes)) == 1


def test_looking_for_a_blas_imports_neither_mlx_nor_numpy() -> None:
    heavy = "{'mlx', 'mlx.core', 'numpy', 'mlx_lm', 'transformers'} & sys.modules.keys()"
    assert status(f"import sys; ensure_blas(); print({heavy})").strip() == "set()"


@pytest.mark.parametrize(
    "name", ["load", "generate", "SpeculativeDecoder", "stream_batch_generate"]
)
def test_a_public_name_that_needs_mlx_brings_the_blas_first(name: str) -> None:
    code = f"""
import sys
from mlx_spec import platform
def first():
    assert "mlx.core" not in sys.modules
    return platform.BlasStatus(False, None, "checked")
platform.choose_blas = first
from mlx_spec import {name}
assert platform._status.reason == "checked" and "mlx.core" in sys.modules
"""
    run = python(code)
    assert run.returncode == 0, run.stderr


def test_windows_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(platform, "_status", None)
    with pytest.raises(MlxSpecError, match="native Windows; use Linux under WSL2"):
        platform.ensure_blas()


@linux
def test_a_cuda_build_gets_no_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_is_cuda_build", lambda: True)
    chosen = blas.choose_blas()
    assert not chosen.fast
    assert "not needed" in chosen.reason
    assert platform.blas_advice(chosen) is None


@linux
def test_mkl_of_the_environment_is_a_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The brackets and the space: paths are not patterns.
    library = tmp_path / "env [1] x" / "lib" / "libmkl_rt.so.3"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(sys, "prefix", str(library.parent.parent))
    assert str(library) in blas._candidates()


@linux
def test_advice_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    none = platform.BlasStatus(False, None, "")
    monkeypatch.setenv(platform.BLAS_VARIABLE, "off")
    assert platform.blas_advice(none) == "unset MLX_SPEC_BLAS"
    monkeypatch.delenv(platform.BLAS_VARIABLE)
    for machine, mkl in (("x86_64", True), ("aarch64", False)):
        monkeypatch.setattr("mlx_spec.platform._platform.machine", lambda m=machine: m)
        advice = platform.blas_advice(none) or ""
        assert "libopenblas0-pthread" in advice
        assert ("fast-cpu" in advice) is mkl
    assert platform.blas_advice(platform.BlasStatus(True, "x", "")) is None
    late = platform.BlasStatus(False, None, "", too_late=True)
    monkeypatch.setattr(blas, "_candidates", lambda: ["libopenblas.so.0", "/nothing.so"])
    advice = platform.blas_advice(late) or ""
    assert "libopenblas0-pthread" in advice
    assert "import mlx_spec before mlx" in advice


def test_describe_names_the_machine() -> None:
    machine = platform.describe()
    assert machine.memory > 2**28
    assert machine.cpu_count >= 1
    assert machine.backend in ("metal", "cuda", "cpu")
    assert machine.device
    assert all(machine.versions.values())
