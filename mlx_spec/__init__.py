"""mlx-spec: lossless batched speculative decoding for MLX.

    from mlx_spec import batch_generate, load

    model, tokenizer = load("demo")  # a folder, a hub id, or the embedded toy
    draft = load("demo-draft")
    batch = batch_generate(model, tokenizer, ["def read_", "class Stack:"], draft_model=draft)
    for result in batch.results:
        print(result.text)

Names are resolved on first use, so that importing the package (and ``mlx-spec --help``) costs
nothing; the first use of a name that needs mlx loads the fast BLAS before it (``platform``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "BatchResult": "results",
    "BatchStream": "batching.stream",
    "BatchedMLXGenerator": "batching.generator",
    "BatchingConfig": "config",
    "CacheOptions": "config",
    "CapacityError": "errors",
    "ChatConfig": "config",
    "DrafterStats": "drafting",
    "GenerationChunk": "results",
    "GenerationResult": "results",
    "GenerationStats": "results",
    "GeneratorClosed": "errors",
    "GeneratorStats": "batching.generator_stats",
    "InvalidRequest": "errors",
    "InvariantError": "errors",
    "LoadConfig": "load_config",
    "MlxSpecError": "errors",
    "ModelLoadError": "errors",
    "OutputError": "errors",
    "PerformanceLog": "metrics",
    "PromptTooLong": "errors",
    "RankError": "errors",
    "SamplingParams": "config",
    "SpeculationConfig": "config",
    "SpeculativeDecoder": "decoding.decoder",
    "Structure": "config",
    "TokenLogprob": "results",
    "TokenStream": "batching.token_stream",
    "TokenizerMismatch": "errors",
    "UnsupportedModel": "errors",
    "WeightQuantization": "load_config",
    "batch_generate": "api",
    "follow": "batching.following",
    "generate": "api",
    "load": "model.loader",
    "make_draft_model": "model.heads.mtp",
    "stream_batch_generate": "api",
    "stream_generate": "api",
}

# These import no mlx.
_LIGHT = ("config", "drafting", "errors", "load_config", "results")

__all__ = [
    "BatchResult",
    "BatchStream",
    "BatchedMLXGenerator",
    "BatchingConfig",
    "CacheOptions",
    "CapacityError",
    "ChatConfig",
    "DrafterStats",
    "GenerationChunk",
    "GenerationResult",
    "GenerationStats",
    "GeneratorClosed",
    "GeneratorStats",
    "InvalidRequest",
    "InvariantError",
    "LoadConfig",
    "MlxSpecError",
    "ModelLoadError",
    "OutputError",
    "PerformanceLog",
    "PromptTooLong",
    "RankError",
    "SamplingParams",
    "SpeculationConfig",
    "SpeculativeDecoder",
    "Structure",
    "TokenLogprob",
    "TokenStream",
    "TokenizerMismatch",
    "UnsupportedModel",
    "WeightQuantization",
    "batch_generate",
    "follow",
    "generate",
    "load",
    "make_draft_model",
    "stream_batch_generate",
    "stream_generate",
]

if TYPE_CHECKING:
    from mlx_spec.api import batch_generate, generate, stream_batch_generate, stream_generate
    from mlx_spec.batching.following import follow
    from mlx_spec.batching.generator import BatchedMLXGenerator
    from mlx_spec.batching.generator_stats import GeneratorStats
    from mlx_spec.batching.stream import BatchStream
    from mlx_spec.batching.token_stream import TokenStream
    from mlx_spec.config import (
        BatchingConfig,
        CacheOptions,
        ChatConfig,
        SamplingParams,
        SpeculationConfig,
        Structure,
    )
    from mlx_spec.decoding.decoder import SpeculativeDecoder
    from mlx_spec.drafting import DrafterStats
    from mlx_spec.errors import (
        CapacityError,
        GeneratorClosed,
        InvalidRequest,
        InvariantError,
        MlxSpecError,
        ModelLoadError,
        OutputError,
        PromptTooLong,
        RankError,
        TokenizerMismatch,
        UnsupportedModel,
    )
    from mlx_spec.load_config import LoadConfig, WeightQuantization
    from mlx_spec.metrics import PerformanceLog
    from mlx_spec.model.heads.mtp import make_draft_model
    from mlx_spec.model.loader import load
    from mlx_spec.results import (
        BatchResult,
        GenerationChunk,
        GenerationResult,
        GenerationStats,
        TokenLogprob,
    )


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mlx_spec' has no attribute {name!r}")
    if _EXPORTS[name] not in _LIGHT:
        # The others need mlx, and a fast BLAS has an effect only if it is there before mlx is.
        from mlx_spec.platform import ensure_blas

        ensure_blas()
    value = getattr(importlib.import_module(f"mlx_spec.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
