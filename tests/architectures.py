"""Every architecture of mlx-lm, built tiny: its ``ModelArgs`` filled by the names of its fields."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_flatten, tree_unflatten

from tests.folders import write_folder

VOCABULARY = 64
LARGEST = 2_000_000  # parameters; a model whose sizes have other names is built at full size

# What the names mean everywhere; a model's own defaults are sized for real weights.
_TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    # Other names of the same.
    "hidden_dim": 32,
    "dim": 32,
    "d_model": 32,
    "model_dim": 32,
    "n_embd": 32,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "n_kv_heads": 2,
    "n_positions": 256,
    "n_ctx": 256,
    "n_inner": 48,
    "max_seq_len": 256,
    "rotary_dim": 8,
    "rotary_pct": 0.5,
    "partial_rotary_factor": 0.5,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 48,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    # Latent attention.
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "routed_scaling_factor": 1.0,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "num_dense_layers": 1,
    "use_expert_bias": True,
    "shared_intermediate_size": 16,
    "intermediate_size_mlp": 48,
    "is_moe_layer": [False, True],
    # Switches and factors without a default.
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "qk_norm": True,
    "use_qk_norm": True,
    "post_norm": False,
    "hidden_act": "silu",
    "rotary_emb_base": 10000.0,
    "logits_scaling": 1.0,
    "attention_multiplier": 0.35,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "scale_emb": 1.0,
    "scale_depth": 1.4,
    "dim_model_base": 32,
    "block_size": 256,
    "layer_types": ["full_attention", "full_attention"],
    "no_rope_layers": [1, 1],
    "sliding_window_pattern": "LG",
    "num_kv_reuse_layers": 1,
    "num_shared_expert": 1,
    "use_mixed_mlp_moe": True,
    "use_cla": False,
    "cla_share_factor": 2,
    # State spaces.
    "use_conv_bias": True,
    "n_groups": 1,
    "time_step_limit": [0.0, 100.0],
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 32,
    "block_ff_dim": 48,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "state_size": 4,
    "conv_kernel": 4,
    "time_step_rank": 2,
    # Windows.
    "sliding_window": 16,
}

# Attention that changes with the position, early enough to show in short texts.
_LATE = {
    "rope_theta": 10000.0,
    "rope_type": "default",
    "llama_4_scaling_beta": 0.5,
    "original_max_position_embeddings": 4,
}
_LONG = {
    "type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}

# What one architecture needs beside, or in another kind.
_OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8},
    "deepseek_v2": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
    },
    "internlm2": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "internlm3": {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}},
    "ministral3": {"rope_parameters": _LATE},
    "mistral4": {"rope_parameters": _LATE},
    "llama4_text": {"floor_scale": 4, "attn_temperature_tuning": True, "no_rope_layers": [0, 1]},
    "gemma3_text": {"sliding_window_pattern": 2},
    "cohere2": {"sliding_window_pattern": 2},
    "plamo3": {"window_pattern": 2, "sliding_window_pattern": 2},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "granitemoehybrid": {
        "layer_types": ["attention", "attention"],
        "position_embedding_type": "rope",
    },
    "minicpm3": {"rope_scaling": _LONG},
    "qwen": {"kv_channels": 8, "intermediate_size": 96},
    "plamo": {"n_shared_head": 2, "num_key_value_heads": 2},
    "stablelm": {"use_qkv_bias": True},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mistral3": {"text_config": {**_TINY, "model_type": "llama"}},
    "kimi_vl": {"text_config": {**_TINY, "model_type": "deepseek_v3"}},
    "gemma2": {"query_pre_attn_scalar": 8},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "lfm2": {"layer_types": ["full_attention", "conv"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 16},
}


class NotBuilt(Exception):
    """Why an architecture could not be built from the names of its fields alone."""


def names() -> list[str]:
    """Every architecture that mlx-lm ships."""
    return [info.name for info in pkgutil.iter_modules(mlx_lm.models.__path__)]


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The config of a tiny model of one architecture."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    fields = dataclasses.fields(module.ModelArgs)
    known = {field.name: _TINY[field.name] for field in fields if field.name in _TINY}
    return {"model_type": name, **known, **_OWN.get(name, {}), **changes}


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random float32 model of one architecture.

    Raises:
        NotBuilt: its config wants more than is known here, or the module is no model.
    """
    try:
        module = importlib.import_module(f"mlx_lm.models.{name}")
        mx.random.seed(seed)
        model = module.Model(module.ModelArgs.from_dict(config(name, **changes)))
    except (Exception, SystemExit) as error:
        raise NotBuilt(f"{name}: {type(error).__name__}: {error}") from error
    size = sum(value.size for _, value in tree_flatten(model.parameters()))
    if size > LARGEST:
        raise NotBuilt(f"{name}: {size:,} parameters by its own defaults")
    weights = [
        (path, value if value.ndim < 2 else 2 * _unit_rows(value))
        for path, value in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def write_architecture(folder: Path, name: str, **changes: Any) -> Path:
    """A whole model folder of one architecture; ``changes`` of its config."""
    write_folder(folder)
    settings = config(name, vocab_size=272, **changes)
    weights = dict(tree_flatten(build(name, **settings).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def _unit_rows(like: mx.array) -> mx.array:
    return mx.random.normal(like.shape) * like.shape[-1] ** -0.5
