"""GGUF files as llama.cpp's converters write them, tiny: from models of ``tests.architectures``.

Names, order of rows and entries of the metadata are written down here once more, from the format's
side, so that a test of the loader compares two independent accounts of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from mlx.utils import tree_flatten, tree_unflatten

from tests import architectures
from tests.gguf_metadata import write_metadata

Q = GGMLQuantizationType
# By GGUF's name: mlx-lm's.
MODEL_TYPES = {
    "cohere2": "cohere2",
    "command-r": "cohere",
    "ernie4_5": "ernie4_5",
    "exaone": "exaone",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "glm4": "glm4",
    "gpt-oss": "gpt_oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "lfm2": "lfm2",
    "llama": "llama",
    "mixtral": "mixtral",  # "llama" in the file
    "nemotron": "nemotron",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi2": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
_TOP = {
    "model.embed_tokens": "token_embd",
    "transformer.wte": "token_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "transformer.ln_f": "output_norm",
    "model.embedding_norm": "token_embd_norm",
    "lm_head": "output",
}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "attn.attention.q_proj": "attn_q",
    "attn.attention.k_proj": "attn_k",
    "attn.attention.v_proj": "attn_v",
    "attn.attention.out_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.c_fc_0": "ffn_gate",
    "mlp.c_fc_1": "ffn_up",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "input_layernorm": "attn_norm",
    "operator_norm": "attn_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "ffn_norm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}
_EXPERTS = re.compile(r".*(?:switch_mlp|experts)\.(gate|up|down)_proj")
# Where a norm stands behind the attention, not before the next block.
_NORM_BEHIND = ("gemma2", "gemma3", "gpt-oss", "olmo2", "seed_oss")
_INTERLEAVED = ("llama", "mixtral", "granite", "granitemoe", "smollm3")
_ONE_MORE = ("gemma", "gemma2", "gemma3", "nemotron")


def tensor_name(architecture: str, parameter: str) -> str:
    """What a converter calls a parameter."""
    module, _, leaf = parameter.rpartition(".")
    if module.endswith("self_attn") and leaf == "sinks":
        return f"blk.{module.split('.')[2]}.attn_sinks.weight"
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    _, _, layer, rest = module.split(".", 3)
    if experts := _EXPERTS.fullmatch(rest):
        return f"blk.{layer}.ffn_{experts[1]}_exps.{leaf}"
    if rest == "post_attention_layernorm":
        behind = architecture in _NORM_BEHIND
        return f"blk.{layer}.{'post_attention_norm' if behind else 'ffn_norm'}.{leaf}"
    return f"blk.{layer}.{_BLOCK[rest]}.{leaf}"


def converted(architecture: str, name: str, value: np.ndarray, config: dict) -> np.ndarray:
    """A parameter as the file has it."""
    if architecture in _ONE_MORE and name.endswith("norm.weight"):
        return value + 1
    match = re.search(r"attn_([qk])\.", name)
    if match and architecture in _INTERLEAVED:
        heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    if name.endswith(("shortconv.conv.weight", "ffn_gate_inp_shexp.weight")):
        return value.squeeze()
    return value


def restored(architecture: str, name: str, value: np.ndarray, config: dict) -> np.ndarray:
    """The inverse of :func:`converted`, but for axes of length 1."""
    if architecture in _ONE_MORE and name.endswith("norm.weight"):
        return value - 1
    match = re.search(r"attn_([qk])\.", name)
    if match and architecture in _INTERLEAVED:
        heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        pairs = value.reshape(heads, len(value) // heads // 2, 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)
    return value


def random_blocks(kind: Q, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Bytes of a tensor of any kind: random numbers, scales of reasonable size."""
    random = np.random.default_rng(seed)
    block, size = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (*shape[:-1], shape[-1] // block * size), dtype=np.uint8)
    blocks = data.reshape(-1, size)
    if kind is Q.MXFP4:
        blocks[:, 0] = random.integers(118, 124, len(blocks))
        return data
    for at in _HALVES[kind]:
        scales = random.uniform(0.5, 1, len(blocks)) * random.choice([-1, 1], len(blocks))
        blocks[:, at : at + 2] = (scales * _SCALE[kind]).astype(np.float16)[:, None].view(np.uint8)
    return data


# Where a block has its float16 scales.
_HALVES: dict[Q, tuple[int, ...]] = {
    Q.Q4_0: (0,),
    Q.Q4_1: (0, 2),
    Q.Q5_0: (0,),
    Q.Q5_1: (0, 2),
    Q.Q8_0: (0,),
    Q.Q2_K: (80, 82),
    Q.Q3_K: (108,),
    Q.Q4_K: (0, 2),
    Q.Q5_K: (0, 2),
    Q.Q6_K: (208,),
    Q.IQ4_NL: (0,),
    Q.IQ4_XS: (0,),
    Q.IQ3_S: (0,),
    Q.IQ2_XXS: (0,),
}
# So that weights are about 0.1 in size.
_SCALE = {
    **dict.fromkeys(_HALVES, 1e-2),
    Q.Q8_0: 2e-3,
    Q.Q2_K: 4e-3,
    Q.Q3_K: 2e-3,
    Q.Q4_K: 5e-4,
    Q.Q5_K: 2e-4,
    Q.Q6_K: 1e-4,
    Q.IQ4_NL: 2e-3,
    Q.IQ4_XS: 1e-4,
    Q.IQ3_S: 1e-3,
    Q.IQ2_XXS: 1e-3,
}


def write_gguf(
    path: Path,
    architecture: str = "llama",
    kind: Q = Q.F32,
    metadata: dict[str, Any] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Any:
    """Write a model of random weights, its matrices in one kind.

    Args:
        path: of the file.
        architecture: GGUF's name.
        kind: of all matrices whose rows hold whole blocks; else float32.
        metadata: entries to change; None takes one out.
        seed: of the weights.
        changes: of the model's config.

    Returns:
        mlx-lm's model with the very weights of the file, as the ``gguf`` package dequantizes them.
    """
    model_type = MODEL_TYPES[architecture]
    changes = {"vocab_size": 272, **_CHANGES.get(architecture, {}), **changes}
    config = architectures.config(model_type, **changes)
    model = architectures.build(model_type, seed, **changes)
    writer = gguf.GGUFWriter(path, "llama" if architecture == "mixtral" else architecture)
    write_metadata(writer, architecture, config, metadata or {})
    weights = []
    random = np.random.default_rng(seed)
    for at, (parameter, value) in enumerate(tree_flatten(model.parameters())):
        name, shape = tensor_name(architecture, parameter), value.shape
        plain = np.array(value)
        if plain.ndim == 1:  # all ones, by which no mistake would show
            plain = random.uniform(0.5, 1.5, shape).astype(np.float32)
        plain = converted(architecture, name, plain, config)
        whole = plain.ndim > 1 and shape[-1] % GGML_QUANT_SIZES[kind][0] == 0
        if not whole or "shortconv.conv" in name:
            writer.add_tensor(name, np.ascontiguousarray(plain))
        else:
            data = _quantized(plain, kind, seed + at)
            writer.add_tensor(name, data, raw_dtype=kind)
            plain = gguf.dequantize(data, kind)
        exact = restored(architecture, name, plain.astype(np.float32), config)
        weights.append((parameter, mx.array(exact.reshape(shape))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    return model


def _quantized(values: np.ndarray, kind: Q, seed: int) -> np.ndarray:
    try:
        return gguf.quantize(np.ascontiguousarray(values), kind)
    except NotImplementedError:  # the package only reads these
        return random_blocks(kind, values.shape, seed)


_CHANGES: dict[str, dict[str, Any]] = {
    "cohere2": {"sliding_window": 16, "sliding_window_pattern": 2, "logit_scale": 0.5},
    "command-r": {"logit_scale": 0.5},
    "gemma3": {"sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "gpt-oss": {"intermediate_size": 48},
    "olmoe": {"norm_topk_prob": False},
    "phi3": {"partial_rotary_factor": 1.0},
    "ernie4_5": {"rope_theta": 10000.0},
    "starcoder2": {"tie_word_embeddings": False},
}
