"""``LayerChoice``: which layers of a model draft for it, measured once and kept on disk.

A file is one model's: its name and its first line are a fingerprint of config, weights and mlx-lm's
version. What cannot be read, or is another's, is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

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
    import platformdirs

    return Path(platformdirs.user_cache_dir("mlx-spec")) / "layers" / f"{key[:24]}.json"


def kept_choice(key: str, count: int) -> LayerChoice | None:
    """What is kept for a model of ``count`` layers; None, with a note, where that is none."""
    path = choice_file(key)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        held = json.loads(text)
        if held.pop("key") != key:
            raise ValueError("of another model")
        layers = tuple(int(layer) for layer in held.pop("layers"))
        if not all(0 <= layer < count for layer in layers):
            raise ValueError(f"layers {layers} of {count}")
        return LayerChoice(layers, float(held.pop("agreement")), float(held.pop("cost")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        warnings.warn(
            f"{path} is not what was written there ({reason}); layers are measured anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def keep_choice(key: str, choice: LayerChoice) -> None:
    """Write it for later processes; where that cannot be, they measure again."""
    path = choice_file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"key": key, **asdict(choice)}), encoding="utf-8")
        part.replace(path)
    except OSError:
        return
