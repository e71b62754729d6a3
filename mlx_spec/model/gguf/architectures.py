"""GGUF's architectures as mlx-lm's: which class, and what of it the metadata gives by other names.

To add one: an entry in ``ARCHITECTURES``. Its tensors are found by the names that the ``gguf``
package knows for the class's parameters (``names``); what most architectures share of a config is
in ``config``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.gguf.file import GGUFFile

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """What makes a GGUF architecture a model of mlx-lm.

    Attributes:
        model_type: mlx-lm's name of it.
        more: entries of its config beside those that all share.
        interleaved: queries and keys lie with the two halves of a rotated pair side by side, as
            llama.cpp turns them; mlx-lm's class wants them half a head apart.
        one_more: norms hold their weight plus one, which mlx-lm's class adds itself.
        partial: the class turns a part of each head, as ``partial_rotary_factor`` says.
        half: float16 is wide enough for what its layers compute.
    """

    model_type: str
    more: Callable[[GGUFFile], Config] = lambda file: {}
    interleaved: bool = False
    one_more: bool = False
    partial: bool = False
    half: bool = True


def architecture_of(file: GGUFFile) -> Architecture:
    """The entry of a file's architecture.

    Raises:
        UnsupportedModel: there is none.
    """
    name = file.architecture
    if name == "llama" and file.get(".expert_count"):
        return _MIXTRAL
    found = ARCHITECTURES.get(name)
    if found is None:
        raise UnsupportedModel(
            f"{file.name} is of architecture {name!r}; of a GGUF file these can be loaded: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    return found


def _experts(file: GGUFFile) -> Config:
    return {
        "num_experts": file.need(".expert_count"),
        "num_experts_per_tok": file.need(".expert_used_count"),
        "moe_intermediate_size": file.get(".expert_feed_forward_length")
        or file.need(".feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _mixtral(file: GGUFFile) -> Config:
    return {
        "num_local_experts": file.need(".expert_count"),
        "num_experts_per_tok": file.need(".expert_used_count"),
    }


def _moe(file: GGUFFile) -> Config:
    """As of Qwen2 and OLMoE, which do not make the chosen experts' shares one."""
    return _experts(file) | {
        "norm_topk_prob": False,
        "intermediate_size": file.need(".feed_forward_length"),
        "shared_expert_intermediate_size": file.get(".expert_shared_feed_forward_length"),
    }


def _gpt_oss(file: GGUFFile) -> Config:
    layers = file.need(".block_count")
    return _mixtral(file) | {
        "intermediate_size": file.need(".expert_feed_forward_length"),
        "sliding_window": file.need(".attention.sliding_window"),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
    }


def _granite(file: GGUFFile) -> Config:
    head = file.get(".attention.key_length") or file.need(".rope.dimension_count")
    return {
        "embedding_multiplier": file.get(".embedding_scale", 1.0),
        "residual_multiplier": file.get(".residual_scale", 1.0),
        "attention_multiplier": file.get(".attention.scale", head**-0.5),
        "logits_scaling": file.get(".logit_scale", 1.0),
    }


def _granite_moe(file: GGUFFile) -> Config:
    return _granite(file) | _mixtral(file)


def _cohere(file: GGUFFile) -> Config:
    return {
        "logit_scale": file.need(".logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
    }


def _cohere2(file: GGUFFile) -> Config:
    return _cohere(file) | _windows(file, 4)


def _stablelm(file: GGUFFile) -> Config:
    return {
        "use_qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "use_parallel_residual": file.get(".use_parallel_residual", False),
    }


def _seed_oss(file: GGUFFile) -> Config:
    return {"attention_out_bias": "blk.0.attn_output.bias" in file.tensors}


def _lfm2(file: GGUFFile) -> Config:
    heads = file.need(".attention.head_count_kv")
    return {
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "full_attn_idxs": [layer for layer, count in enumerate(heads) if count],
        "conv_L_cache": file.need(".shortconv.l_cache"),
        "conv_bias": any(name.endswith("shortconv.in_proj.bias") for name in file.tensors),
        "block_dim": file.need(".embedding_length"),
        "block_ff_dim": file.need(".feed_forward_length"),
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    }


def _windows(file: GGUFFile, usual: int) -> Config:
    """A sliding window in all layers but every n-th."""
    pattern = file.get(".attention.sliding_window_pattern", usual)
    if isinstance(pattern, list):
        layers = pattern
        pattern = layers.index(False) + 1 if False in layers else len(layers) + 1
        if any(slides == ((at + 1) % pattern == 0) for at, slides in enumerate(layers)):
            raise UnsupportedModel(
                f"{file.name} has windows in layers of no regular pattern, which mlx-lm's class "
                "has not"
            )
    return {
        "sliding_window": file.need(".attention.sliding_window"),
        "sliding_window_pattern": pattern,
    }


def _gemma_scale(file: GGUFFile, wide: int) -> Config:
    """By what queries are divided; llama.cpp tells the 27B models by their number of layers."""
    heads, hidden = file.need(".attention.head_count"), file.need(".embedding_length")
    largest = file.need(".block_count") == wide
    head = file.get(".attention.key_length", hidden // heads)
    return {"query_pre_attn_scalar": hidden // heads if largest else head}


def _gemma2(file: GGUFFile) -> Config:
    return _gemma_scale(file, 46) | {
        "attn_logit_softcapping": file.get(".attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get(".final_logit_softcapping", 30.0),
    }


def _gemma3(file: GGUFFile) -> Config:
    return {
        **_gemma_scale(file, 62),
        **_windows(file, 6),
        "rope_theta": file.get(".rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": file.get(".rope.freq_base_swa", 10_000.0),
    }


def _no_window(file: GGUFFile) -> Config:
    if file.get(".attention.sliding_window"):
        raise UnsupportedModel(f"{file.name} is an Olmo 3, which cannot be loaded from GGUF yet")
    return {}


_MIXTRAL = Architecture("mixtral", _mixtral, interleaved=True)

# By GGUF's name.
ARCHITECTURES = {
    "cohere2": Architecture("cohere2", _cohere2),
    "command-r": Architecture("cohere", _cohere),
    "ernie4_5": Architecture(
        "ernie4_5", lambda file: {"use_bias": "blk.0.attn_output.bias" in file.tensors}
    ),
    "exaone": Architecture("exaone"),
    "gemma": Architecture("gemma", one_more=True, half=False),
    "gemma2": Architecture("gemma2", _gemma2, one_more=True, half=False),
    "gemma3": Architecture("gemma3_text", _gemma3, one_more=True, half=False),
    "glm4": Architecture("glm4", partial=True),
    "gpt-oss": Architecture("gpt_oss", _gpt_oss),
    "granite": Architecture("granite", _granite, interleaved=True),
    "granitemoe": Architecture("granitemoe", _granite_moe, interleaved=True),
    "lfm2": Architecture("lfm2", _lfm2),
    "llama": Architecture("llama", interleaved=True),
    "nemotron": Architecture(
        "nemotron", lambda file: {"hidden_act": "relu2"}, one_more=True, partial=True
    ),
    "olmo2": Architecture("olmo2", _no_window),
    "olmoe": Architecture("olmoe", _moe),
    "phi2": Architecture("phi", partial=True),
    "phi3": Architecture("phi3", partial=True),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture("qwen2_moe", _moe),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", _experts),
    "seed_oss": Architecture("seed_oss", _seed_oss),
    "smollm3": Architecture("smollm3", interleaved=True),
    "stablelm": Architecture("stablelm", _stablelm, partial=True),
    "starcoder2": Architecture("starcoder2"),
}
