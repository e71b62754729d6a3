"""``LayerChoice``: which layers of a model draft for it, measured once and kept on disk.

A file is one model's: its name and its first line are a fingerprint of config, weights and mlx-lm's
version. What cannot be read, or is another's, is measured anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_spec.kept_file import keep, kept_path, read_kept

_SAMPLES, _NUMBERS = 16, 32  # arrays whose first numbers enter a fingerprint
_MOST_DRAFTED = 6


@dataclass(frozen=True)
class LayerChoice:
    """Layers that draft.

    Attributes:
        layers: their numbers, from 0.
        agreement: share of positions at which they say what all layers say.
        cost: of a pass of theirs, as a share of the whole model's.
    """

    layers: tuple[int, ...]
    agreement: float
    cost: float

    @property
    def promise(self) -> float:
        """Tokens of a step over its cost, at the best draft length; below 1 it does not pay."""
        best, kept = 0.0, 1.0
        for length in range(1, _MOST_DRAFTED + 1):
            kept += self.agreement**length
            best = max(best, kept / (1 + length * self.cost))
        return best


def fingerprint(model: Any) -> str:
    """Of a model's config, weights and code: the same for the same file, in any process."""
    arrays = tree_flatten(model.parameters())
    words: list[Any] = [version("mlx-lm"), type(model).__module__, str(getattr(model, "args", ""))]
    words += [(name, array.shape, str(array.dtype)) for name, array in arrays]
    for _, array in arrays[:: max(1, len(arrays) // _SAMPLES)]:
        first = array.reshape(-1)[:_NUMBERS].astype(mx.float32)
        words.append(np.array(first).tolist())
    return hashlib.sha256(repr(words).encode()).hexdigest()


def choice_file(key: str) -> Path:
    """Where the choice for a model is kept."""
    return kept_path("layers", key[:24])


def kept_choice(key: str, count: int) -> LayerChoice | None:
    """What is kept for a model of ``count`` layers; None, with a note, where that is none."""

    def parse(held: dict[str, Any]) -> LayerChoice:
        layers = tuple(int(layer) for layer in held["layers"])
        if not all(0 <= layer < count for layer in layers):
            raise ValueError(f"layers {layers} of {count}")
        return LayerChoice(layers, float(held["agreement"]), float(held["cost"]))

    return read_kept(choice_file(key), key, parse, "layers are measured anew")


def keep_choice(key: str, choice: LayerChoice) -> None:
    """Write it for later processes; where that cannot be, they measure again."""
    keep(choice_file(key), key, asdict(choice))
