"""What machine this is: backend, memory, versions; and the one call that loads a fast BLAS.

Every package of ours that imports mlx calls :func:`ensure_blas` first (see ``blas``); on Metal and
CUDA builds it does nothing. This module never imports mlx or numpy by itself, except in
:func:`describe` and :func:`recommended_memory`, and imports only ``errors`` and ``blas`` of ours.
"""

from __future__ import annotations

import os
import platform as _platform
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from mlx_spec.blas import BLAS_VARIABLE as BLAS_VARIABLE
from mlx_spec.blas import BlasStatus as BlasStatus
from mlx_spec.blas import blas_advice as blas_advice
from mlx_spec.blas import choose_blas
from mlx_spec.errors import MlxSpecError

Backend = Literal["metal", "cuda", "cpu"]


@dataclass(frozen=True)
class Machine:
    """What :func:`describe` found.

    Attributes:
        memory: total memory of the machine, in bytes.
        cpu_count: processors this process may use.
        backend: the device MLX computes on by default.
        device: that device's own name.
        blas: the BLAS in use, on the CPU backend.
        advice: how to get a fast BLAS, or None where none is needed.
        settings: what may make MLX faster on Metal and is the user's to try, a line each.
        versions: installed version of each package named, ``None`` where it is missing.
    """

    system: str
    machine: str
    python: str
    cpu_count: int
    memory: int
    backend: Backend
    device: str
    blas: BlasStatus
    advice: str | None
    settings: tuple[str, ...]
    versions: dict[str, str | None]


_status: BlasStatus | None = None


def check_platform() -> None:
    """Refuse native Windows, for which MLX does not exist.

    Raises:
        MlxSpecError: on Windows.
    """
    if sys.platform == "win32":
        raise MlxSpecError(
            "[platform] MLX does not exist for native Windows; use Linux under WSL2, or macOS"
        )


def ensure_blas() -> BlasStatus:
    """Load a fast BLAS before mlx is imported, where one helps and one is found.

    The first call decides; later calls return what it found, at no cost.

    Raises:
        MlxSpecError: on native Windows, or where ``MLX_SPEC_BLAS`` names no usable library.
    """
    global _status
    if _status is None:
        check_platform()
        # transformers, which mlx-lm imports, tells that torch is missing and that long prompts
        # will fail; it reads this once. A user's own setting stays.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        _status = choose_blas()
    return _status


_warned = False


def warn_if_slow_blas(stacklevel: int = 2) -> None:
    """Say once a process that a fast BLAS came too late; callers are about to run a model.

    Warns:
        RuntimeWarning: mlx was imported before mlx_spec and runs on the CPU, with its slow BLAS.
    """
    global _warned
    status = ensure_blas()
    if _warned or not status.too_late:
        return
    import mlx.core as mx

    if _backend(mx) == "cpu":
        _warned = True
        advice = blas_advice(status) or ""
        more = f" ({advice})" if "install" in advice else ""  # else the reason says it all
        warnings.warn(
            f"models run some 20 times slower than need be, on {status.reason}{more}",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def describe() -> Machine:
    """Describe this machine and the installed versions. Imports mlx.

    Raises:
        MlxSpecError: on native Windows, or where mlx cannot be imported.
    """
    status = ensure_blas()
    try:
        import mlx.core as mx
    except ImportError as error:
        raise MlxSpecError(f"[platform] mlx cannot be imported: {error}") from error
    backend = _backend(mx)
    return Machine(
        system=f"{_platform.system()} {_platform.release()}",
        machine=_platform.machine(),
        python=_platform.python_version(),
        cpu_count=_usable_cpus(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        backend=backend,
        device=_device_name(mx),
        blas=status,
        advice=blas_advice(status) if backend == "cpu" else None,
        settings=metal_settings() if backend == "metal" else (),
        versions={name: _version(name) for name in ("mlx", "mlx-lm", "mlx-spec")},
    )


# MLX's own variables, read once when it is imported, that others measured to matter: what to try.
_SETTINGS = {
    "MLX_MAX_OPS_PER_BUFFER": ("100", "more operations a command buffer"),
    "MLX_MAX_MB_PER_BUFFER": (
        "512",
        "more memory a command buffer: the peak grows, by gigabytes over long contexts",
    ),
    "MLX_METAL_FAST_SYNCH": ("1", "faster waiting between CPU and GPU; needs macOS 15"),
}


def metal_settings() -> tuple[str, ...]:
    """MLX's variables for Metal: what they are and what to try. None of them is ever set here."""
    told = []
    for name, (value, what) in _SETTINGS.items():
        now = os.environ.get(name)
        state = f"set to {now}" if now is not None else f"not set; try {name}={value}"
        told.append(f"{name} ({what}): {state}")
    return (*told, "set them before Python starts, and compare with mlx-spec bench")


def recommended_memory() -> int:
    """Bytes that MLX may well use here: Metal's recommended working set, else all memory."""
    import mlx.core as mx

    info = mx.device_info() if hasattr(mx, "device_info") else {}
    size = info.get("max_recommended_working_set_size") or info.get("memory_size")
    return int(size or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _backend(mx: Any) -> Backend:
    """The kind of MLX's default device."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def _device_name(mx: Any) -> str:
    """MLX's own name for its default device."""
    info = mx.device_info() if hasattr(mx, "device_info") else {}
    return str(info.get("device_name") or info.get("architecture") or mx.default_device())


def _usable_cpus() -> int:
    """Processors this process may run on (containers and taskset give fewer than exist)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    """Installed version of a package, None if it is not installed."""
    if package == "mlx-spec":
        from mlx_spec import __version__

        return __version__
    from importlib import metadata  # slow to import, and only doctor asks

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
