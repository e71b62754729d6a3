"""A head as a folder: of our own kind (config.json, model.safetensors, a card), or EAGLE-3's."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.errors import ModelLoadError
from mlx_spec.model.heads.eagle3 import Eagle3Head, is_eagle3, load_eagle3
from mlx_spec.model.heads.head import MODEL_TYPE, DraftHead, HeadConfig
from mlx_spec.model.source import locate

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_head(head: DraftHead, folder: str | os.PathLike[str], dtype: mx.Dtype = mx.float16) -> int:
    """Write a head, each file at once or not at all.

    Returns:
        Bytes of its weights' file.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value
        for name, value in tree_flatten(head.parameters())
    }
    new = place / f"new.{WEIGHTS}"
    mx.save_safetensors(str(new), weights, metadata={"format": "mlx"})
    new.replace(place / WEIGHTS)
    settings = place / f"new.{CONFIG}"
    settings.write_text(json.dumps(head.config.as_dict(), indent=2) + "\n", encoding="utf-8")
    settings.replace(place / CONFIG)
    return (place / WEIGHTS).stat().st_size


def is_head(folder: Path) -> bool:
    """Whether a folder is one of a head: of our own kind, or EAGLE-3's."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # whoever loads it says so
        return False
    if not isinstance(settings, dict):
        return False
    return settings.get("model_type") == MODEL_TYPE or is_eagle3(settings)


def names_head(path_or_repo: str) -> bool:
    """Whether what ``load`` takes is such a folder; False, too, where there is nothing."""
    try:
        place = locate(path_or_repo)
    except ModelLoadError:
        return False
    return place.is_dir() and is_head(place)


def load_head(
    folder: str | os.PathLike[str], dtype: mx.Dtype | None = None
) -> DraftHead | Eagle3Head:
    """Read a head.

    Args:
        folder: as :func:`save_head` writes it, or a published one of EAGLE-3; entries of its
            config that are none of ours (what it was trained on) are passed by.
        dtype: of its weights; None as they are.

    Raises:
        ModelLoadError: it is none, or its weights are others than its config says.
    """
    place = Path(folder)
    try:
        settings = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        head = load_eagle3(place, settings) if is_eagle3(settings) else _own(place, settings)
    except (OSError, ValueError, TypeError, RuntimeError, ModelLoadError) as error:
        words = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"[load_head] {place}: {words}") from error
    if dtype is not None:
        head.set_dtype(dtype)
    mx.eval(head.parameters())
    return head


def _own(place: Path, settings: dict[str, Any]) -> DraftHead:
    known = {field.name for field in fields(HeadConfig)}
    head = DraftHead(HeadConfig(**{k: v for k, v in settings.items() if k in known}))
    weights: Any = mx.load(str(place / WEIGHTS))
    head.load_weights(list(weights.items()))
    return head
