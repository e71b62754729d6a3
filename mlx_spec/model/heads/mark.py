"""What a head remembers of the target that it was made for, to tell another one of the same size.

No hash: the same model comes in other types and in fewer bits, and is no other target for that.
Some numbers of the embedding point the same way in all of them, and in no other model.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_spec.model.heads.parts import TargetParts

TOKENS, NUMBERS = 8, 16  # so many numbers of so many tokens
LEAST_ALIKE = 0.97  # their cosine; 4-bit weights keep above 0.99


def mark_of(parts: TargetParts) -> dict[str, Any]:
    """The mark of a target, as it stands in a head's config.json."""
    text = base64.b64encode(_sample(parts).astype(np.float16).tobytes()).decode()
    return {"name": parts.name, "layers": parts.layers, "embedding": text}


def other_target(mark: Mapping[str, Any] | None, parts: TargetParts) -> str | None:
    """How a target differs from the one of a mark; None where it does not, or nothing is known."""
    if not isinstance(mark, Mapping):
        return None
    known = (mark.get("name"), mark.get("layers"))
    if None not in known and known != (parts.name, parts.layers):
        return f"{known[0]!r} with {known[1]} layers, not {parts.name!r} with {parts.layers}"
    try:
        numbers = np.frombuffer(base64.b64decode(mark["embedding"]), np.float16)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    expected, found = numbers.astype(np.float32), _sample(parts)
    if expected.shape != found.shape:
        return None
    size = float(np.linalg.norm(expected) * np.linalg.norm(found))
    if size and float(expected @ found) / size < LEAST_ALIKE:
        return "a model of the same shape with other weights"
    return None


def _sample(parts: TargetParts) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Some numbers of the embeddings of tokens from all over the vocabulary."""
    tokens = mx.array([parts.vocabulary * place // TOKENS for place in range(TOKENS)], mx.int32)
    rows = parts.embed(tokens[None])[..., :NUMBERS].astype(mx.float32)
    return np.array(rows).reshape(-1)
