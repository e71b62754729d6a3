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


def _gemma2(file: GGUFFile) -> Config:
    # llama.cpp tells the 27B model, which divides by another root, by its number of layers.
    wide = file.need(".block_count") == 46
    heads = file.need(".attention.head_count")
    return {
        "query_pre_attn_scalar": file.need(".embedding_length") // heads
        if wide
        else file.need(".attention.key_length"),
        "attn_logit_softcapping": file.get(".attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get(".final_logit_softcapping", 30.0),
    }


def _gemma3(file: GGUFFile) -> Config:
    wide = file.need(".block_count") == 62  # the 27B model, as above
    heads = file.need(".attention.head_count")
    pattern = file.get(".attention.sliding_window_pattern", 6)
    return {
        "query_pre_attn_scalar": file.need(".embedding_length") // heads
        if wide
        else file.need(".attention.key_length"),
        "sliding_window": file.need(".attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "rope_theta": file.get(".rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": file.get(".rope.freq_base_swa", 10_000.0),
    }


_MIXTRAL = Architecture("mixtral", _mixtral, interleaved=True)

# By GGUF's name.
ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", _experts),
    "gemma": Architecture("gemma", one_more=True, half=False),
    "gemma2": Architecture("gemma2", _gemma2, one_more=True, half=False),
    "gemma3": Architecture("gemma3_text", _gemma3, one_more=True, half=False),
    "phi3": Architecture("phi3", partial=True),
    "starcoder2": Architecture("starcoder2"),
}
