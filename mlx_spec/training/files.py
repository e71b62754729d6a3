"""Files that are there whole or not at all, whatever ends the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_spec.errors import OutputError


def save_arrays(path: Path, arrays: dict[str, mx.array], about: dict[str, Any]) -> None:
    """A safetensors file; ``about`` is kept with it as JSON.

    Raises:
        OutputError: it cannot be written.
    """
    # mx.save_safetensors adds the suffix where a name has another.
    fresh = path.with_name(f".{path.stem}.new.safetensors")
    try:
        mx.save_safetensors(
            str(fresh), arrays, metadata={name: json.dumps(value) for name, value in about.items()}
        )
        _into_place(fresh, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"[train-draft] {path} cannot be written ({error})") from error


def load_arrays(path: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """What :func:`save_arrays` wrote.

    Raises:
        OutputError: it is another file, or damaged.
    """
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        return loaded[0], {name: json.loads(text) for name, text in loaded[1].items()}
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"[train-draft] {path} cannot be read; delete it ({error})") from error


def save_text(path: Path, text: str) -> None:
    """A text file, in UTF-8.

    Raises:
        OutputError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        _into_place(fresh, path)
    except OSError as error:
        raise OutputError(f"[train-draft] {path} cannot be written ({error.strerror})") from error


def _into_place(fresh: Path, path: Path) -> None:
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)
