"""Draft models that lie on this machine and that nobody named."""

from __future__ import annotations

import json
from typing import Any

from mlx_spec.bench.arms import weight_bytes
from mlx_spec.model.catalog import FoundModel, find_models

_MOST = 3
# Of the target's bytes in memory; of its own on disk they may be half, in 16 bits.
_SMALLER = 0.4


def drafts_at_hand(model: Any) -> list[str]:
    """Names of smaller models of the same architecture with as large a vocabulary, the smallest
    first: whether they share its tokenizer shows when they are tried."""
    args = getattr(model, "args", None)
    kind, vocabulary = (getattr(args, name, None) for name in ("model_type", "vocab_size"))
    if kind is None or vocabulary is None:
        return []
    most = _SMALLER * weight_bytes(model)
    found = [
        one
        for one in find_models()
        if one.model_type == kind and one.size <= most and _vocabulary(one) == vocabulary
    ]
    return [one.name for one in sorted(found, key=lambda one: one.size)[:_MOST]]


def _vocabulary(found: FoundModel) -> Any:
    """What its config says; the catalog has read it, so it is there and JSON."""
    return json.loads((found.path / "config.json").read_text(encoding="utf-8")).get("vocab_size")
