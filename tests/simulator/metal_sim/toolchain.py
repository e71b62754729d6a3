"""The C++ compiler of the ``ziglang`` wheel, and a cache of what it made.

Only the wheel's clang and linker are used, directly, without zig's own driver: no libc++, no
sanitizer runtime, no undefined-behaviour default. Objects are kept by the hash of everything that
went into them, in ``$MLX_SPEC_METAL_SIM_CACHE`` or the user's cache folder, so a second run
compiles nothing. Raises ``CompileError`` with the compiler's own words.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
RUNTIME = HERE / "runtime"


class CompileError(RuntimeError):
    """The kernel's source is not valid Metal, as far as the simulator can tell."""


def unavailable() -> str | None:
    """Why the simulator cannot run here; None where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the Metal simulator runs on Linux x86-64, this is {sys.platform}"
    missing = [name for name in ("ziglang", "pyelftools") if not _installed(name)]
    if missing:
        return f"THE METAL KERNELS ARE NOT TESTED here: pip install {' '.join(missing)}"
    return None


def _installed(package: str) -> bool:
    module = {"pyelftools": "elftools"}.get(package, package)
    return importlib.util.find_spec(module) is not None


def skip_unless_available() -> None:
    """For test modules: skip all of this one, loudly, where the simulator cannot run."""
    reason = unavailable()
    if reason:
        import pytest  # only here: a script needs none

        warnings.warn(f"[metal_sim] {reason}", stacklevel=2)
        pytest.skip(reason, allow_module_level=True)


@functools.cache
def zig_folder() -> Path:
    """Where the wheel keeps the compiler and its headers."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise CompileError("[metal_sim] the compiler is missing: pip install ziglang")
    return Path(spec.origin).parent


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = os.environ.get("MLX_SPEC_METAL_SIM_CACHE")
    folder = Path(chosen) if chosen else Path(base) / "mlx-spec" / "metal_sim"
    folder = folder.absolute()  # the process may go elsewhere
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / "mlx-spec-metal-sim"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def mlx_include() -> Path:
    """The headers of the installed mlx wheel (its utils.h is part of every kernel)."""
    spec = importlib.util.find_spec("mlx")
    if spec is None or not spec.submodule_search_locations:
        raise CompileError("[metal_sim] mlx is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "include"


def _digest(paths: Iterable[Path]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest


@functools.cache
def _digest_of_headers() -> bytes:
    """Changes when the shim, the compiler or mlx's headers change."""
    headers = (mlx_include() / "mlx" / "backend" / "metal" / "kernels").glob("*.h")
    digest = _digest([*INCLUDE.rglob("*"), *headers])
    digest.update(f"{zig_folder()} {(zig_folder() / 'zig').stat().st_size}".encode())
    return digest.digest()


def runtime_source() -> str:
    """The text that compiles to the runtime; it changes when one of its files does."""
    return f'#include "runtime.cpp"  // {_digest(RUNTIME.iterdir()).hexdigest()}\n'


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """One call of the wheel's clang or linker."""
    command = [str(zig_folder() / "zig"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def place(source: str, flags: list[str], name: str, suffix: str) -> Path:
    """Where the cache keeps what is made of this text with these flags."""
    key = hashlib.sha256(_digest_of_headers())
    key.update("\0".join([source, *flags]).encode())
    return cache_folder() / f"{name[:40]}-{key.hexdigest()[:32]}{suffix}"


def keep(path: Path, text: str) -> None:
    """Put a text into the cache, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def check(source: str, flags: list[str]) -> str:
    """What the compiler says about C++ text."""
    with tempfile.NamedTemporaryFile("w", suffix=".cpp", dir=cache_folder()) as file:
        file.write(source)
        file.flush()
        return run(["clang", file.name, *flags]).stderr


def build(source: str, flags: list[str], name: str) -> Path:
    """Compile and link C++ text into a shared library; its path in the cache."""
    library = place(source, flags, name, ".so")
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        path = Path(folder) / "source.cpp"
        path.write_text(source)
        compiled, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        result = run(["clang", "-c", str(path), "-o", str(compiled), *flags])
        # A process that ignores SIGCHLD, as in the background of some shells, sees no exit code.
        if result.returncode or not compiled.exists():
            raise CompileError(f"[metal_sim] {name} does not compile:\n{result.stderr}")
        result = run(["ld.lld", "-shared", str(compiled), "-o", str(linked)])
        if result.returncode or not linked.exists():
            raise CompileError(f"[metal_sim] {name} does not link:\n{result.stderr}")
        os.replace(linked, library)
    return library


def _half_flags() -> list[str]:
    """Hardware conversion of half floats, where this processor has it."""
    cpu = Path("/proc/cpuinfo")
    return ["-mf16c"] if cpu.exists() and " f16c" in cpu.read_text() else []


def common_flags() -> list[str]:
    """What all C++ here is compiled with."""
    return [
        *("-std=c++17", "-fPIC", "-nostdinc", "-fno-exceptions", "-fno-rtti"),
        *("-target", "x86_64-linux-gnu", "-fvisibility=hidden", *_half_flags()),
    ]


def runtime_flags() -> list[str]:
    """How the runtime is compiled: optimised, with glibc's headers."""
    libc = zig_folder() / "lib" / "libc" / "include"
    folders = [zig_folder() / "lib" / "include"]
    names = ("x86-linux-gnu", "generic-glibc", "x86-linux-any", "any-linux-any")
    folders += [libc / name for name in names]
    system = [flag for folder in folders for flag in ("-isystem", str(folder))]
    return [*common_flags(), "-O2", "-I", str(RUNTIME), *system]


def kernel_flags(*extra: str) -> list[str]:
    """How kernels are compiled: every load, store, branch and division is reported.

    No vectorizer, since the instrumentation skips loads wider than 16 bytes; no excess precision,
    so that half and bfloat round after every operation, as on the GPU; unsuffixed literals are
    floats, as in Metal.
    """
    flags = [
        *(*common_flags(), "-O1", "-ffreestanding", "-Wno-everything", "-gline-tables-only"),
        *("-fsanitize=thread", "-fsanitize=integer-divide-by-zero,array-bounds"),
        *("-fsanitize-coverage=edge,no-prune,trace-pc", "-fno-finite-loops"),
        *("-mllvm", "-tsan-instrument-read-before-write=1"),
        *("-mllvm", "-tsan-instrument-func-entry-exit=0"),
        *("-fno-vectorize", "-fno-slp-vectorize", "-Xclang", "-cl-single-precision-constant"),
        *("-Xclang", "-ffloat16-excess-precision=none"),
        *("-Xclang", "-fbfloat16-excess-precision=none"),
        *("-I", str(INCLUDE), "-I", str(mlx_include()), *extra),
    ]
    return [*flags, "-include-pch", str(_prelude(tuple(flags))), "-Xclang", "-fno-validate-pch"]


@functools.cache
def _prelude(flags: tuple[str, ...]) -> Path:
    """sim/prelude.h, compiled ahead: it is half the time that a small kernel takes.

    Errors are allowed: the strict passes refuse some of mlx's own header, which nobody uses.
    """
    path = place("prelude", list(flags), "prelude", ".pch")
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            made = Path(folder) / "prelude.pch"
            source = ["-x", "c++-header", str(INCLUDE / "sim" / "prelude.h"), "-o", str(made)]
            allow = ["-Xclang", "-fallow-pch-with-compiler-errors"]
            result = run(["clang", *source, *flags, *allow])
            if not made.exists():
                raise CompileError(f"[metal_sim] the prelude does not compile:\n{result.stderr}")
            os.replace(made, path)
    return path
