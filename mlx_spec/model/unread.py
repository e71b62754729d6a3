"""Entries of config.json that change what a model says, and that mlx-lm's class passes by.

A class of mlx-lm takes the entries that it knows and drops the others without a word: a window that
is not honoured, a capped logit that is not capped. Whether an entry is *read* is looked up in the
sources of the model's modules (``.name`` or ``"name"``); what it means where it is not is the table
here: a value that switches something on which the class then does not do. What shows by itself
(shapes and names of weights, which loading compares) is left out; rotations are looked after by
``rotation``.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from mlx_spec.errors import InvalidRequest
from mlx_spec.model.context import NAMES as CONTEXT_NAMES
from mlx_spec.model.rotation import passed_by

Config = Mapping[str, Any]


def _head_dim(config: Config) -> Any:
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    return config.get("head_dim") or (width // heads if heads and width else None)


def _window(value: Any, config: Config) -> bool:
    """Whether a sliding window is used, and shorter than the context."""
    used = config.get("use_sliding_window", True) and isinstance(value, int) and value > 0
    windowed = not config.get("layer_types") or any(_windows(config["layer_types"]))
    return used and windowed and value < (config.get("max_position_embeddings") or value + 1)


def _windows(types: Any) -> list[bool]:
    """Which layers see a part of the text only, by a config's ``layer_types``."""
    return ["sliding" in str(one) or "chunked" in str(one) for one in types]


def _unread_windows(model: Any, config: Config) -> dict[str, Any]:
    """Windows that the model as it is built does not have, or has in other layers.

    A class may read the entry and still need another to act on it: Mistral's first config has a
    window and no ``layer_types``, without which mlx-lm's class takes all layers for full.
    """
    caches = model.make_cache() if hasattr(model, "make_cache") else []
    # The plainest cache keeps everything; one of a window has a size; others say nothing here.
    whole = [type(one).__name__ == "KVCache" for one in caches]
    window, types = config.get("sliding_window"), config.get("layer_types")
    if _window(window, config) and all(whole):
        return {"sliding_window": window}
    if types and any(_windows(types)):
        windowed = [hasattr(one, "max_size") for one in caches]
        layers = zip(_windows(types), whole, windowed, strict=False)
        wrong = any(full if wanted else bounded for wanted, full, bounded in layers)
        if not caches or (len(caches) == len(types) and wrong):
            return {"layer_types": types}
    return {}


def _on(value: Any, _: Config) -> bool:
    return bool(value)


def _off(value: Any, _: Config) -> bool:
    return value is False


def _scales(value: Any, _: Config) -> bool:
    return isinstance(value, (int, float)) and value != 1


def _scores(value: Any, config: Config) -> bool:
    """Whether scores are divided by another root than the head's width."""
    return isinstance(value, (int, float)) and value != _head_dim(config)


# Whether a value changes the output of a class that does not read the entry.
_MATTERS: dict[str, Callable[[Any, Config], bool]] = {
    "attention_chunk_size": lambda value, config: (
        bool(value) and "chunked_attention" in (config.get("layer_types") or ())
    ),
    "attn_logit_softcapping": _on,
    "final_logit_softcapping": _on,
    "clip_qkv": _on,
    "alibi": _on,
    "use_alibi": _on,
    "use_bidirectional_attention": _on,
    "is_causal": _off,
    "attn_temperature_tuning": _on,
    "scale_attn_weights": _off,
    "scale_attn_by_inverse_layer_idx": _on,
    "logit_scale": _scales,
    "logits_scaling": _scales,
    "embedding_multiplier": _scales,
    "residual_multiplier": _scales,
    "routed_scaling_factor": _scales,
    "partial_rotary_factor": _scales,
    "rotary_pct": _scales,
    "query_pre_attn_scalar": _scores,
    "no_rope_layers": lambda value, _: isinstance(value, list) and not all(value),
}
# Entries that say one thing under many names, and of which a class reads one.
_NAMES_OF_ONE = [
    names.split()
    for names in (
        "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon layernorm_epsilon "
        "rms_norm_epsilon norm_rms_eps ln_eps epsilon",
        "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts "
        "experts_top_k num_activated_experts top_k",
    )
]
# Functions by name: one that the sources do not mention is not what they compute.
_FUNCTIONS = {
    "silu": "silu|swiglu|swish",
    "swish": "silu|swiglu|swish",
    "gelu": "gelu|geglu",
    "gelu_new": "gelu|geglu",
    "gelu_fast": "gelu|geglu",
    "gelu_pytorch_tanh": "gelu|geglu",
    "relu": "relu",
    "relu2": "relu|square",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
}
_FUNCTION_NAMES = [
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "mlp_hidden_act",
    "scoring_func",  # of a router, as the next
    "score_function",
]
# What load, mlx-lm's loader or the tokenizer read themselves; beside the lengths of the context.
_READ_BEFORE = re.compile(
    r"model_type|architectures|model_file|text_config|quantiz\w+|\w+_token_ids?|rope_theta"
    r"|rope_scaling|rope_parameters|original_max_position_embeddings|partial_rotary_factor"
)


def warn_of_unread(model: Any, config: Config, stacklevel: int = 2) -> None:
    """Say in one line which entries count and are not read.

    Args:
        model: as mlx-lm built it.
        config: what it was built from.
        stacklevel: as for ``warnings.warn``.

    Warns:
        RuntimeWarning: there are such entries.
    """
    found = unread(model, config)
    if found:
        entries = ", ".join(f"{name} {_short(value)}" for name, value in found.items())
        warnings.warn(
            f"config.json has {entries}, which mlx-lm's {_named(model, config)} does not read: "
            "what it says differs from the original model's",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def unread(model: Any, config: Config) -> dict[str, Any]:
    """The entries that change what the original model says and not what this one says."""
    text = _source(_modules(model))
    found: dict[str, Any] = {}
    for level in (config, config.get("text_config")):
        if not isinstance(level, Mapping):
            continue
        for name, matters in _MATTERS.items():
            value = level.get(name)
            if value is not None and not _reads(text, name) and matters(value, level):
                found[name] = value
        found |= _unread_windows(model, level)
        found |= passed_by(model, dict(level))
        for names in _NAMES_OF_ONE:
            there = [name for name in names if isinstance(level.get(name), (int, float))]
            if there and not any(_reads(text, name) for name in there):
                found[there[0]] = level[there[0]]
        for name in _FUNCTION_NAMES:
            function = _FUNCTIONS.get(str(level.get(name)).lower())
            if function and not _reads(text, name) and not re.search(function, text):
                found[name] = level[name]
    return found


def check_overrides(model: Any, overrides: Mapping[str, Any], config: Config) -> None:
    """Refuse overrides without an effect: a name that is misspelt, or that the class passes by.

    Raises:
        InvalidRequest: one of them.
    """
    text = _source(_modules(model))
    for name in overrides:
        last = name.removeprefix("text_config.").partition(".")[0]
        if last in CONTEXT_NAMES or _READ_BEFORE.fullmatch(last) or _reads(text, last):
            continue
        known = [entry for entry in config if _reads(text, entry)]
        raise InvalidRequest(
            f"config_overrides names {name!r}, which mlx-lm's {_named(model, config)} does not "
            f"read{_meant(last, known)}"
        )


def _meant(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _named(model: Any, config: Config) -> str:
    return str(getattr(model, "model_type", None) or config.get("model_type"))


def _short(value: Any) -> str:
    text = str(sorted(set(map(str, value))) if isinstance(value, list) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _modules(model: Any) -> frozenset[str]:
    """The Python modules whose code the model runs."""
    classes = [type(module) for _, module in model.named_modules()]
    return frozenset(base.__module__ for one in classes for base in one.__mro__)


@lru_cache(maxsize=8)
def _source(names: frozenset[str]) -> str:
    """The sources of modules, but MLX's own layers and ours, without what only declares."""
    texts = []
    for name in sorted(names):
        if name.split(".")[0] not in ("mlx", "builtins", "mlx_spec"):
            try:
                texts.append(inspect.getsource(sys.modules[name]))
            except (OSError, TypeError, KeyError):
                continue
    return "\n".join(texts)


def _reads(text: str, name: str) -> bool:
    return re.search(rf"\.{name}\b|[\"']{name}[\"']", text) is not None
