"""Records through models: read, prompt, generate or score, write, and go on after a crash.

``runner`` feeds a ``Stage`` record by record and writes each result as it comes; ``checkpoint``
makes an interrupted output continue as if nothing had happened; ``chain`` runs several stages.

    from mlx_spec.pipeline import Classify, collect

    rows = collect(Classify(labels=("code", "soup")), [{"text": "def read_"}], model=name)

Importing it costs nothing: the command line reads the options of stages and commands here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Align": "stages",
    "Classify": "stages",
    "Done": "stage",
    "Filter": "stages",
    "Flags": "flags",
    "Generate": "stage",
    "GenerateText": "stages",
    "Score": "stage",
    "Stage": "stage",
    "StructureText": "stages",
    "collect": "collecting",
    "text_of": "stage",
}

__all__ = [
    "Align",
    "Classify",
    "Done",
    "Filter",
    "Flags",
    "Generate",
    "GenerateText",
    "Score",
    "Stage",
    "StructureText",
    "collect",
    "text_of",
]

if TYPE_CHECKING:
    from mlx_spec.pipeline.collecting import collect
    from mlx_spec.pipeline.flags import Flags
    from mlx_spec.pipeline.stage import Done, Generate, Score, Stage, text_of
    from mlx_spec.pipeline.stages.align import Align
    from mlx_spec.pipeline.stages.classify import Classify
    from mlx_spec.pipeline.stages.filter import Filter
    from mlx_spec.pipeline.stages.generate import GenerateText
    from mlx_spec.pipeline.stages.structure import StructureText


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mlx_spec.pipeline' has no attribute {name!r}")
    # Who uses them will run models: a fast BLAS has an effect only if it is there before mlx is.
    from mlx_spec.platform import ensure_blas

    ensure_blas()
    return getattr(importlib.import_module(f"mlx_spec.pipeline.{_EXPORTS[name]}"), name)
