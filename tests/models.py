"""Tiny random float32 models of several mlx-lm families, for exactness tests."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

VOCABULARY = 64

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "phi3": {},
    "olmo2": {"head_dim": 8},
    "qwen2": {},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "starcoder2": {"norm_epsilon": 1e-5},
}


def _unit_rows(like: mx.array) -> mx.array:
    return mx.random.normal(like.shape) * like.shape[-1] ** -0.5


def make_model(family: str = "llama", seed: int = 0, **overrides: Any) -> Any:
    """A random model of ``family``; weights large enough that the text varies."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    config = {**SHAPE, **FAMILIES[family], "model_type": family, **overrides}
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = [
        (name, value if value.ndim < 2 else 2 * _unit_rows(value))
        for name, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


@cache
def endless() -> Any:
    """A llama whose context nobody reaches; never changed."""
    return make_model("llama", max_position_embeddings=10**6)
