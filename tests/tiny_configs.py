"""What one architecture's tiny config needs beside ``TINY``, or in another kind.

Layers that slide, fold tokens into a state or take part of a text come first and full attention
last, so that two or three layers show all kinds of caches of a model.
"""

from __future__ import annotations

from typing import Any

from tests.tiny_sizes import TINY, VOCABULARY, WINDOW

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
_YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_BASES = {"full_attention": {"rope_theta": 10000.0}, "sliding_attention": {"rope_theta": 1000.0}}
_SHARED = {  # two layers with caches of their own, two that read them
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_GEMMA3N = {
    **_SHARED,
    "rope_local_base_freq": 1000.0,
    "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 4,
}
_KIMI = {
    "head_dim": 8,
    "linear_attn_config": {
        "num_heads": 4,
        "head_dim": 8,
        "kda_layers": [1],
        "full_attn_layers": [2],
        "short_conv_kernel_size": 4,
        "gate_lower_bound": -5.0,
    },
    "model_max_length": 256,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
}
_MUSE = {
    **_SLIDING,
    "layer_rope_theta": [10000.0, 0],
    "post_norm_eps": 1e-8,
    "output_multiplier": 1.0,
    "final_logit_softcapping": 20.0,
    "moe_hidden_size": 32,
    "rope_parameters": {"rope_theta": 10000.0},
}
_MISTRAL4 = {"rope_parameters": _LATE}
_LONGCAT = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
_OLMO = {"mlp_hidden_size": 96, "embedding_size": VOCABULARY}
_PACKED = {  # widths of whole groups
    "hidden_size": 128,
    "intermediate_size": 128,
}

# What one architecture needs beside, or in another kind.
OWN: dict[str, dict[str, Any]] = {
    "afmoe": _SLIDING,
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "bailing_moe_linear": {"num_experts": 8, "topk_group": 1},
    "bailing_moe_v3": {"moe_shared_expert_intermediate_size": 16, "num_hidden_layers": 2},
    "cohere2": {"sliding_window_pattern": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": _YARN},
    "deepseek_v41": {
        "compress_ratios": [1, 4],
        "kv_source_layer_ids": [0, 1],
        "index_source_layer_ids": [1],
        "o_groups": 2,
        "o_lora_rank": 16,
        "hc_mult": 2,
        "head_dim": 16,
        "qk_rope_head_dim": 8,
        "scoring_func": "sqrtsoftplus",
    },
    "exaone_moe": _SLIDING,
    "falcon_h1": {"mamba_d_ssm": 32, "attention_out_multiplier": 1.0, "lm_head_multiplier": 1.0},
    "gear": {
        "num_hidden_layers": 3,
        "layer_types": ["conv_mixer", "sliding_attention", "full_attention"],
    },
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {"text_config": {**TINY, **_GEMMA3N, "model_type": "gemma3n"}},
    "gemma4_text": {**_SHARED, "global_head_dim": 16, "rope_parameters": _BASES},
    "glm_moe_dsa": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "gpt_oss": _SLIDING,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan": {
        "num_hidden_layers": 4,
        "use_cla": True,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    },
    "internlm2": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "internlm3": {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_linear": _KIMI,
    "laguna": {**_SLIDING, "mlp_layer_types": ["dense", "sparse"], "rope_parameters": _BASES},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lille-130m": {"n_embd": 64, "layer_norm_eps": 1e-5},
    "llama4_text": {"floor_scale": 4, "attn_temperature_tuning": True, "no_rope_layers": [0, 1]},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": {**_LONGCAT, "ngram_vocab_size_ratio": 3},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8},
    "mellum": {**_SLIDING, "rope_parameters": _BASES},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 1000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "minicpm3": {"rope_scaling": _LONG},
    "ministral3": {**_SLIDING, "rope_parameters": _LATE},
    "mistral4": _MISTRAL4,
    "muse_glimmer": _MUSE,
    "nanbeige": {"num_loops": 2},
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
        ],
    },
    "nemotron_h": {
        "num_hidden_layers": 4,
        "hybrid_override_pattern": ["M", "*", "-", "E"],
        "moe_shared_expert_intermediate_size": 16,
        "time_step_limit": [0.0, 100.0],
    },
    "olmo": _OLMO,
    "olmo3": _SLIDING,
    "olmo_hybrid": _LINEAR,
    "openelm": {
        "num_transformer_layers": 2,
        "ffn_dim_divisor": 8,
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [1.0, 2.0],
    },
    "phi3small": {
        "vocab_size": 100352,  # it writes over logits of its own tokenizer's by number
        "hidden_size": 16,
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 48,
        "gegelu_limit": 20.0,
        "blocksparse_block_size": 32,
        "blocksparse_num_local_blocks": 1,
        "blocksparse_vert_stride": 2,
    },
    "phixtral": {"num_vocab": VOCABULARY, "model_dim": 32},
    "plamo": {"n_shared_head": 2, "num_key_value_heads": 2},
    "plamo2": {"hidden_size_per_head": 8, "mamba_step": 2, "mamba_d_state": 8},
    "plamo3": {"window_pattern": 2, "sliding_window_pattern": 2},
    "prism_hadamard_qwen35": {
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {
                "path": "model.layers.0.mlp.down_proj",
                "embedding": False,
                "dtype": "float16",
                "block": 0,
            }
        ],
    },
    "qwen": {"kv_channels": 8, "intermediate_size": 96},
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "spark2_5": {**_SLIDING, "hidden_act": "gelu", "rope_parameters": _BASES},
    "stablelm": {"use_qkv_bias": True},
    "step3p5": {
        **_SLIDING,
        "num_attention_groups": 2,
        "moe_top_k": 2,
        "share_expert_dim": 16,
        "moe_layers_enum": "1",
    },
}

# The text part of a model that sees or hears: whose config it is, and what is said beside.
TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {}),
    "gemma4": ("gemma4_text", {}),
    "kimi_k25": ("deepseek_v3", {}),
    "kimi_k3": ("kimi_k3", {**_KIMI, "hidden_act": "situ"}),
    "kimi_vl": ("deepseek_v3", {}),
    "lfm2-vl": ("lfm2", {}),
    "llama4": (
        "llama4",
        {
            "attention_chunk_size": WINDOW,
            "num_hidden_layers": 4,
            "interleave_moe_layer_step": 2,
            "floor_scale": 4,
            "num_experts_per_tok": 1,
        },
    ),
    "minimax_m3_vl": (
        "minimax_m3_vl",
        {
            "moe_layer_freq": [0, 1],
            "sparse_attention_freq": [0, 1],
            "index_block_size": 4,
            "index_topk_blocks": 3,
            "dense_intermediate_size": 48,
        },
    ),
    "mistral3": ("ministral3", {}),
    "muse_spark": ("muse_spark", {**_MUSE, "num_shared_experts": 0}),
    "pixtral": ("llama", {}),
    "qwen2_vl": ("qwen2", {}),
    "prism_hadamard_qwen35": ("qwen3_5_text", {**_PACKED, "num_experts": 0}),
    "qwen3_5": ("qwen3_5_text", {"num_experts": 0}),
    "qwen3_5_moe": ("qwen3_5_text", {}),
    "qwen3_vl": ("qwen3", {}),
    "qwen3_vl_moe": ("qwen3_moe", {}),
}

# Weights whose texts vary: other seeds than 0, and embeddings that do not drown the layers.
SEEDS = {
    "apertus": 2,
    "cohere": 6,
    "cohere2": 5,
    "dots1": 4,
    "gemma3": 7,
    "gemma3_text": 7,
    "gemma3n": 3,
    "glm4_moe": 1,
    "lfm2": 6,
    "lfm2-vl": 6,
    "olmo3": 4,
    "phi3small": 3,
    "solar_open": 1,
}
FAINT = frozenset(("gemma2", "gemma3n", "phi3small"))
