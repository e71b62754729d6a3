"""How far a token leads in a race of one row alone, to compare what was said of it in a batch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import mlx.core as mx

import metal_kernels


def lead_alone(model: Any, known: Seq[int], token: int, seed: int, temperature: float) -> float:
    """Of ``token`` behind ``known``, by a model that has read nothing else."""
    logits = model(mx.array([list(known)]))[:, -1:]
    rows = metal_kernels.SampleRows.of([seed], [temperature])
    position, chosen = mx.array([[len(known)]]), mx.array([[token]], mx.int32)
    return float(metal_kernels.leads(logits, position, rows, chosen).item())
