"""Timed passes on disk: a file for each model on each machine, as it runs there.

A file's name and its first lines say what it is of: machine, processors, device, BLAS, versions of
mlx and mlx-lm, and the model's modules and arrays by shape and type (so kernels that are bound and
quantization are part of it, and a tuned copy of a model shares its table). What cannot be read, or
is another's, is left aside with a note and written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.platform import describe

VARIABLE = "MLX_SPEC_COSTS"
"""``off``: nothing is timed and nothing is kept; a folder: tables are kept there."""


def measuring() -> bool:
    """Whether passes are to be timed at all."""
    return os.environ.get(VARIABLE, "").strip().lower() != "off"


def costs_folder() -> Path:
    """Where tables are kept."""
    import platformdirs

    named = os.environ.get(VARIABLE, "").strip()
    if named and named.lower() != "off":
        return Path(named).expanduser()
    return Path(platformdirs.user_cache_dir("mlx-spec")) / "costs"


@lru_cache(maxsize=1)
def _here() -> tuple[str, ...]:
    """This machine, as far as a pass depends on it."""
    machine = describe()
    threads = [
        f"{name}={os.environ[name]}"
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        if name in os.environ
    ]
    return (
        machine.machine,
        f"{machine.cpu_count} processors",
        f"{machine.backend} {machine.device}",
        str(machine.blas.path or "own BLAS"),
        *(f"{name} {machine.versions[name]}" for name in ("mlx", "mlx-lm")),
        *threads,
    )


def model_lines(*models: Any, part: str = "") -> tuple[str, ...]:
    """What models are, as far as a pass depends on it; ``part`` names what of them runs."""
    return (*map(_lines, models), part, str(mx.default_device()))


def _lines(model: Any) -> str:
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if not isinstance(model, nn.Module):
        return kind
    arrays = [(name, a.shape, str(a.dtype)) for name, a in tree_flatten(model.parameters())]
    modules = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    words = repr((str(getattr(model, "args", "")), arrays, modules))
    return f"{kind} {hashlib.sha256(words.encode()).hexdigest()}"


def costs_file(lines: tuple[str, ...]) -> Path:
    """Where the table of a model is kept."""
    key = hashlib.sha256(repr((_here(), lines)).encode()).hexdigest()
    return costs_folder() / f"{key[:24]}.json"


def kept_costs(lines: tuple[str, ...]) -> PassCosts | None:
    """What is kept of a model's passes; None, with a note, where that is none of it."""
    path = costs_file(lines)
    try:
        return _read(path, lines)
    except OSError:
        return None
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        warnings.warn(
            f"{path} is not what was written there ({reason}); passes are timed anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _read(path: Path, lines: tuple[str, ...]) -> PassCosts:
    """What a file holds.

    Raises:
        OSError, ValueError: there is none, or it is something else.
    """
    text = path.read_text(encoding="utf-8")
    try:
        held = json.loads(text)
        if (held["machine"], held["model"]) != (list(_here()), list(lines)):
            raise ValueError("of another model or machine")
        return PassCosts.from_dict(held["costs"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no table of passes ({error!r})") from error


def keep_costs(lines: tuple[str, ...], costs: PassCosts) -> Path | None:
    """Write a table for later processes, beside what others have timed meanwhile.

    Returns:
        Where it is; None where that cannot be, so that they time again.
    """
    path = costs_file(lines)
    with contextlib.suppress(OSError, ValueError):
        for width, points in _read(path, lines).points.items():
            known = costs.points.get(width, {})
            costs.put({n: spent for n, spent in points.items() if n not in known}, width=width)
    held = {"machine": _here(), "model": lines, "costs": costs.to_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as part:
                json.dump(held, part, indent=1)
            os.replace(name, path)  # there whole or not at all, whoever writes it meanwhile
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError:
        return None
    return path
