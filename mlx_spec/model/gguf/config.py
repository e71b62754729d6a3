"""The config of a model in a GGUF file: what config.json would say, from the metadata.

Names are those of mlx-lm's classes; each takes what it knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.gguf.architectures import Architecture, Config
from mlx_spec.model.gguf.file import GGUFFile

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
# The scalings of Llama 3's kind that there are: the file gives only what they come to.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3", "type": "llama3"}
_ORIGINAL = 8192
# Entries of an architecture that change nothing, or that other entries say already.
_HARMLESS = frozenset(
    {
        "attention.causal",
        "expert_feed_forward_length",
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "vocab_size",
    }
)
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def config_of(file: GGUFFile, architecture: Architecture) -> Config:
    """The config of a file's model.

    Raises:
        ModelLoadError: the metadata lacks an entry.
        UnsupportedModel: it asks for what mlx-lm's class does not do.
    """
    layers = file.need(".block_count")
    if layers > len(file.tensors):
        raise ModelLoadError(f"{file.name} has {layers:,} layers and {len(file.tensors)} tensors")
    hidden, heads = file.need(".embedding_length"), _uniform(file, ".attention.head_count")
    head = file.get(".attention.key_length", hidden // heads)
    if file.get(".attention.value_length", head) != head:
        raise UnsupportedModel(f"{file.name} has keys and values of different length")
    rms = file.get(".attention.layer_norm_rms_epsilon")
    epsilon = rms if rms is not None else file.need(".attention.layer_norm_epsilon")
    attention_bias = "blk.0.attn_q.bias" in file.tensors
    config: Config = {
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_layers": layers,
        "intermediate_size": _uniform(file, ".feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _uniform(file, ".attention.head_count_kv", heads),
        "head_dim": head,
        "vocab_size": _vocabulary(file),
        "max_position_embeddings": file.need(".context_length"),
        "rms_norm_eps": epsilon,
        "norm_epsilon": epsilon,
        "layer_norm_eps": epsilon,
        "norm_eps": epsilon,
        "layer_norm_epsilon": epsilon,
        "attention_bias": attention_bias,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": _OUTPUT not in file.tensors,
        # llama.cpp's, where the file has none; classes of mlx-lm have others.
        "rope_theta": file.get(".rope.freq_base", 10_000.0),
    }
    if window := file.get(".attention.sliding_window"):
        config["sliding_window"] = window
    config |= {name: file.get(entry) for name, entry in _TOKENS.items() if entry in file.metadata}
    config |= _rotation(file, architecture, head)
    return config | architecture.more(file)


def warn_of_unasked(file: GGUFFile) -> None:
    """Say which entries of a file's architecture nobody asked for.

    Warns:
        RuntimeWarning: there are some that may change what the model says.
    """
    prefix = f"{file.architecture}."
    mine = {name for name in file.metadata if name.startswith(prefix)} - file.asked
    unknown = sorted(name for name in mine if name.removeprefix(prefix) not in _HARMLESS)
    if unknown:
        values = ", ".join(f"{name} {str(file.metadata[name])[:40]}" for name in unknown)
        warnings.warn(
            f"{file.name} has {values} in its metadata, which is not read here: what the model "
            "says may differ from llama.cpp's",
            RuntimeWarning,
            stacklevel=4,  # whoever called load
        )


def _vocabulary(file: GGUFFile) -> int:
    """Rows of the embedding: the metadata's number may leave out some that only fill it up."""
    if (tensor := file.tensors.get(_EMBEDDING)) is None:
        raise ModelLoadError(f"{file.name} has no tensor {_EMBEDDING}")
    return int(tensor.shape[-1])


def _uniform(file: GGUFFile, name: str, default: int | None = None) -> int:
    """A number that some architectures give layer by layer: the same for all that have any."""
    value = file.need(name) if default is None else file.get(name, default)
    if not isinstance(value, list):
        return int(value)
    different = set(value) - {0}
    if len(different) != 1:
        raise UnsupportedModel(
            f"{file.name} has layers of different shape ({file.architecture}{name}), which "
            "mlx-lm's class has not"
        )
    return int(different.pop())


def _rotation(file: GGUFFile, architecture: Architecture, head: int) -> Config:
    """How positions turn: the part of a head, and the scaling."""
    turned = file.get(".rope.dimension_count", head)
    config: Config = {}
    if architecture.partial:
        config["partial_rotary_factor"] = turned / head
    elif turned != head:
        raise UnsupportedModel(
            f"{file.name} turns {turned} of a head's {head} numbers, which mlx-lm's "
            f"{architecture.model_type} does not do"
        )
    if scaling := _long(file) or _llama3(file, turned) or _named(file):
        config["rope_scaling"] = scaling
        if "original_max_position_embeddings" in scaling:
            original = scaling["original_max_position_embeddings"]
            config["original_max_position_embeddings"] = original
    return config


def _named(file: GGUFFile) -> Config | None:
    """Scaling as the metadata names it."""
    kind, factor = file.get(".rope.scaling.type"), file.get(".rope.scaling.factor")
    if kind is None and (linear := file.get(".rope.scale_linear")):
        kind, factor = "linear", linear
    original = file.get(".rope.scaling.original_context_length")
    if kind in (None, "none") or (kind == "linear" and not factor):
        return None
    if kind not in ("linear", "yarn") or not factor:
        raise UnsupportedModel(f"{file.name} scales positions by {kind!r} without saying how")
    scaling: Config = {"type": kind, "rope_type": kind, "factor": float(factor)}
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    for name in ("beta_fast", "beta_slow"):
        if (value := file.get(f".rope.scaling.yarn_{name}")) is not None:
            scaling[name] = value
    return scaling


def _long(file: GGUFFile) -> Config | None:
    """Scaling by a factor for each pair of a head ("longrope"), which are tensors."""
    long, short = (file.vector(f"rope_factors_{each}.weight") for each in ("long", "short"))
    if long is None or short is None:
        return None
    original = file.need(".rope.scaling.original_context_length")
    file.get(".rope.scaling.attn_factor")  # mlx-lm's class computes it from the same two lengths
    return {
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": long.ravel().tolist(),
        "short_factor": short.ravel().tolist(),
        "original_max_position_embeddings": original,
        "factor": file.need(".context_length") / original,
    }


def _llama3(file: GGUFFile, turned: int) -> Config | None:
    """Llama 3's scaling, of which the file has the factor of every pair of a head.

    Raises:
        UnsupportedModel: the factors are not those of any such scaling.
    """
    factors = file.vector("rope_freqs.weight")
    if factors is None or np.all(factors == 1):
        return None
    theta = file.get(".rope.freq_base", 10_000.0)
    scaling = {
        "factor": float(round(float(factors.max()), 3)),
        "original_max_position_embeddings": file.get(
            ".rope.scaling.original_context_length", _ORIGINAL
        ),
        **_LLAMA3,
    }
    wanted = _llama3_factors(scaling, theta, turned)
    if factors.size != wanted.size or not np.allclose(factors.ravel(), wanted, rtol=1e-4):
        raise UnsupportedModel(
            f"{file.name} scales positions by numbers of its own (rope_freqs.weight), which are "
            "not those of Llama 3's scaling"
        )
    return scaling


def _llama3_factors(scaling: Mapping[str, Any], theta: float, turned: int) -> np.ndarray[Any, Any]:
    """By what Llama 3's scaling divides the frequency of each pair."""
    lengths = 2 * np.pi * theta ** (np.arange(0, turned, 2) / turned)
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    factors: np.ndarray[Any, Any] = 1 / ((1 - smooth) / factor + smooth)
    return factors
