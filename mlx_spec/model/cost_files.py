"""Timed passes on disk: a file for each model on each machine, as it runs there.

A file's name and its first lines say what it is of: machine, processors, device, BLAS, versions of
mlx and mlx-lm, and the model's modules and arrays by shape and type (so kernels that are bound and
quantization are part of it, and a tuned copy of a model shares its table). What cannot be read, or
is another's, is left aside with a note and written anew.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.kept_file import keep, kept_path, read_kept
from mlx_spec.platform import describe

VARIABLE = "MLX_SPEC_COSTS"
"""``off``: nothing is timed and nothing is kept; a folder: tables are kept there."""


def measuring() -> bool:
    """Whether passes are to be timed at all."""
    return os.environ.get(VARIABLE, "").strip().lower() != "off"


def costs_folder() -> Path:
    """Where tables are kept."""
    named = os.environ.get(VARIABLE, "").strip()
    if named and named.lower() != "off":
        return Path(named).expanduser()
    return kept_path("costs", "any").parent


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
    return costs_folder() / f"{_key(lines)[:24]}.json"


def _key(lines: tuple[str, ...]) -> str:
    return hashlib.sha256(repr((_here(), lines)).encode()).hexdigest()


def kept_costs(lines: tuple[str, ...]) -> PassCosts | None:
    """What is kept of a model's passes; None, with a note, where that is none of it."""
    again = "passes are timed anew"
    return read_kept(costs_file(lines), _key(lines), _parsed, again)


def _parsed(record: Any) -> PassCosts:
    return PassCosts.from_dict(record["costs"])


def keep_costs(lines: tuple[str, ...], costs: PassCosts) -> bool:
    """Write a table for later processes, beside what others have timed meanwhile; whether that
    could be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # said when it was looked for
        others = kept_costs(lines)
    if others is not None:
        costs.join(others)
    record = {"machine": _here(), "model": lines, "costs": costs.to_dict()}
    return keep(costs_file(lines), _key(lines), record)
