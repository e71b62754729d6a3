"""The metadata of tiny GGUF files: a model's config, and a tokenizer of one token a byte."""

from __future__ import annotations

from typing import Any

import gguf
from tokenizers import pre_tokenizers

END = "<|end|>"


def write_metadata(
    writer: gguf.GGUFWriter, architecture: str, config: dict, changes: dict[str, Any]
) -> None:
    """The metadata of a config, and a tokenizer of one token a byte."""
    layers, heads = config.get("num_hidden_layers") or config["num_layers"], "attention.head_count"
    epsilon = next(config[key] for key in config if key.endswith(("eps", "epsilon")))
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    entries: dict[str, Any] = {
        "context_length": config.get("max_position_embeddings", 256),
        "embedding_length": config["hidden_size"],
        "block_count": layers,
        "feed_forward_length": config.get("intermediate_size") or config["block_ff_dim"],
        heads: config["num_attention_heads"],
        f"{heads}_kv": config["num_key_value_heads"],
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(epsilon),
        "rope.freq_base": float(config.get("rope_theta", 10000.0)),
        "rope.dimension_count": int(head * config.get("partial_rotary_factor", 1)),
        **_more_metadata(architecture, config),
    }
    prefix = "llama" if architecture == "mixtral" else architecture
    named = {f"{prefix}.{name}": value for name, value in entries.items()}
    for name, value in {**named, **_vocabulary(config["vocab_size"]), **changes}.items():
        add_entry(writer, name, value)


def _more_metadata(architecture: str, config: dict) -> dict[str, Any]:
    """What an architecture has beside."""
    more: dict[str, Any] = {}
    for name, key in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("logit_scale", "logit_scale"),
        ("logit_scale", "logits_scaling"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("use_parallel_residual", "use_parallel_residual"),
        ("attention.sliding_window_pattern", "sliding_window_pattern"),
        ("shortconv.l_cache", "conv_L_cache"),
        ("expert_count", "num_experts"),
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ):
        if key in config:
            more[name] = config[key]
    if architecture in ("gemma3", "cohere2", "gpt-oss"):
        more["attention.sliding_window"] = config["sliding_window"]
    if architecture == "gpt-oss":
        more["expert_feed_forward_length"] = config["intermediate_size"]
    if architecture == "lfm2":
        kinds = config["layer_types"]
        more["attention.head_count_kv"] = [2 if kind == "full_attention" else 0 for kind in kinds]
    return more


def _vocabulary(size: int) -> dict[str, Any]:
    """One token a byte, an end token, and what fills the embedding up."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    letters.append("ab")
    tokens = letters + [f"[PAD{number}]" for number in range(len(letters), size)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens[:size],
        "tokenizer.ggml.token_type": [1] * 256 + [3, 1] + [5] * (size - 258),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 256,
    }


def add_entry(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    """An entry of the metadata in the type that converters give it."""
    if value is None:
        writer.kv_data[0].pop(name, None)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, (list, tuple)):
        writer.add_array(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)
