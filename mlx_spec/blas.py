"""A fast BLAS for MLX's CPU build on Linux: found, loaded, and left cleanly at exit.

MLX's CPU wheel links a reference BLAS (a few GFLOP/s, cost linear in rows), with which neither
batching nor speculation can win. A fast BLAS in the process's global symbol scope *before*
``mlx.core`` is imported takes its place. ``platform.ensure_blas`` asks for that once a process.

``MLX_SPEC_BLAS`` overrides the search: ``off`` (the wheel's own BLAS: slow, but its batched and
single rows agree bit for bit), ``auto`` (the default), or the path of a shared library.

This module never imports mlx or numpy, and imports only ``errors`` of ours.
"""

from __future__ import annotations

import atexit
import ctypes
import glob
import importlib.util
import os
import platform as _platform
import site
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_spec.errors import MlxSpecError

BLAS_VARIABLE = "MLX_SPEC_BLAS"

# Fedora calls the threaded builds p (pthread) and o (OpenMP), and the plain name is serial there;
# on Debian, Ubuntu, Arch and conda the plain name is the threaded one.
_OPENBLAS_NAMES = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblaso.so.0")
_OPENBLAS_PLACES = (
    "/usr/lib/*-linux-gnu/openblas-*/",
    "/usr/lib/*-linux-gnu/",
    "/usr/lib64/",
    "/usr/lib/",
    "/usr/local/lib/",
    "/opt/OpenBLAS/lib/",
)


@dataclass(frozen=True)
class BlasStatus:
    """Which BLAS MLX's CPU products run on.

    Attributes:
        fast: whether a fast BLAS is in use (on Metal and CUDA none is needed: False).
        path: the library in use, as a path or as the name the loader found it by.
        reason: one sentence for ``mlx-spec doctor``: why this one, or why none.
        too_late: mlx was imported first, so that none could take effect.
    """

    fast: bool
    path: str | None
    reason: str
    too_late: bool = False


def choose_blas() -> BlasStatus:
    """Apply the platform, the user's override and the search, in this order."""
    if sys.platform != "linux":
        return BlasStatus(False, None, "not needed: MLX brings its own products here")
    if _is_cuda_build():
        return BlasStatus(False, None, "not needed: MLX's CUDA build")
    wish = os.environ.get(BLAS_VARIABLE, "").strip() or "auto"
    if wish.lower() == "off":
        return BlasStatus(False, None, f"the reference BLAS of MLX's wheel ({BLAS_VARIABLE}=off)")
    preloaded = _global_blas()
    if preloaded is not None:
        return BlasStatus(True, preloaded, "already loaded in this process")
    if "mlx.core" in sys.modules:
        return BlasStatus(
            False,
            None,
            "the reference BLAS of MLX's wheel: mlx was imported first; import mlx_spec before mlx",
            too_late=True,
        )
    if wish.lower() != "auto":
        return _load_wished(wish)
    return _search()


def _load_wished(wish: str) -> BlasStatus:
    """Load the library that the user named, or say why not."""
    path = os.path.expanduser(wish)
    trouble = "has no cblas_sgemm"
    try:
        loaded = _load(path)
    except OSError as error:
        loaded, trouble = False, f"cannot be loaded ({error})"
    if not loaded:
        raise MlxSpecError(
            f"[platform] {BLAS_VARIABLE}={wish!r} {trouble}; "
            "expected off, auto or the path of a BLAS library"
        )
    return BlasStatus(True, _global_blas() or path, f"chosen by {BLAS_VARIABLE}")


def _search() -> BlasStatus:
    """Load the first usable library among the system's OpenBLAS and the environment's MKL."""
    for path in _candidates():
        try:
            if _load(path):
                return BlasStatus(True, _global_blas() or path, "found by the search")
        except OSError:
            continue  # absent, or built for another machine: the next one may do
    return BlasStatus(False, None, "the reference BLAS of MLX's wheel: no fast one was found")


def _candidates() -> list[str]:
    """Names and paths to try, best first.

    A bare name asks the dynamic loader, which knows LD_LIBRARY_PATH and ldconfig's list, without
    the subprocesses that ``ctypes.util.find_library`` starts.
    """
    prefixes = [sys.prefix, sys.exec_prefix, site.getuserbase() or sys.prefix, "/usr/local"]
    libraries = [glob.escape(os.path.join(prefix, "lib")) for prefix in dict.fromkeys(prefixes)]
    paths = [*_OPENBLAS_NAMES]
    for place in (*_OPENBLAS_PLACES, *(f"{library}/" for library in libraries)):
        for name in _OPENBLAS_NAMES:
            paths += sorted(glob.glob(place + name))
    for library in libraries:
        paths += sorted(glob.glob(f"{library}/libmkl_rt.so*"), reverse=True)
    return paths


def _load(path: str) -> bool:
    """Put one library into the global symbol scope; False if it is no BLAS.

    Raises:
        OSError: it does not exist or cannot be loaded.
    """
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    if not hasattr(library, "cblas_sgemm"):
        return False
    atexit.register(_settle_mlx)
    return True


def _settle_mlx() -> None:
    """Wait, at exit, for MLX's work in flight.

    OpenBLAS joins its worker threads when the process ends; a product still running under
    ``mx.async_eval`` at that moment loses the wake-up and the process hangs for ever. This
    covers the streams of the main thread: a thread of one's own must synchronize before it ends.
    """
    mx = sys.modules.get("mlx.core")
    if mx is None:
        return
    mx.synchronize()
    stream = getattr(sys.modules.get("mlx_lm.generate"), "generation_stream", None)
    if stream is not None:
        mx.synchronize(stream)


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` of <dlfcn.h>."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _global_blas() -> str | None:
    """The library that ``cblas_sgemm`` comes from in the global scope, which MLX asks first."""
    program = ctypes.CDLL(None)
    if not hasattr(program, "cblas_sgemm"):
        return None
    info = _SymbolInfo()
    address = ctypes.cast(program.cblas_sgemm, ctypes.c_void_p)
    if not program.dladdr(address, ctypes.byref(info)) or not info.file:
        return "an unnamed library"
    return os.path.realpath(os.fsdecode(info.file))


def _is_cuda_build() -> bool:
    """Whether the installed mlx is a CUDA build, told without importing it."""
    spec = importlib.util.find_spec("mlx")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return any(any(Path(place).parent.glob("mlx_cuda*.dist-info")) for place in places)


def blas_advice(status: BlasStatus) -> str | None:
    """How to get a fast BLAS on this machine, or None where there is nothing to gain."""
    if sys.platform != "linux" or status.fast or _is_cuda_build():
        return None
    if os.environ.get(BLAS_VARIABLE, "").strip().lower() == "off":
        return f"unset {BLAS_VARIABLE}"
    first = "import mlx_spec before mlx, mlx_lm and what imports them"
    if status.too_late and _is_installed():
        return first
    advice = "apt install libopenblas0-pthread (or your distribution's OpenBLAS)"
    if _platform.machine() == "x86_64":
        advice += ", or pip install 'mlx-spec[fast-cpu]'"
    return f"{advice}; and {first}" if status.too_late else advice


def _is_installed() -> bool:
    """Whether a fast BLAS lies where the search looks, told without loading it."""
    wish = os.path.expanduser(os.environ.get(BLAS_VARIABLE, "").strip())
    paths = [path for path in [wish, *_candidates()] if os.sep in path]
    return any(os.path.isfile(path) for path in paths)
