"""Rotary positions as a config writes them: put into the words that mlx-lm's classes read.

Transformers 5 keeps the settings in ``rope_parameters``; most classes of mlx-lm read the older
``rope_theta`` and ``rope_scaling`` and pass the new entry by, so that a model would be turned with
the defaults. :func:`old_form` says what to change in a config before a model is built from it, and
:func:`check_rotation` looks at the built model for what the config asked for: a wrong rotation is
refused, never run.

Dynamic scaling ("NTK") is one number for all rows of a pass, by the longest of them; up to the
context of the training it changes nothing. There it is taken out and the context ends.
"""

from __future__ import annotations

import math
import re
from typing import Any

import mlx.nn as nn

from mlx_spec.errors import UnsupportedModel

# Rotations by layer type that a class reads itself, and those that the older words can say.
_READ_BY_LAYER = frozenset({"gemma4_text", "laguna", "mellum", "spark2_5"})
_LOCAL_AND_GLOBAL = frozenset({"gemma3_text", "gemma3n_text"})
# One base for all layers, and scaling in those that see the whole text.
_SCALED_IF_GLOBAL = frozenset({"olmo3"})
# The part of a rotation's class name by which a kind of scaling shows.
_SHOWS_AS = {
    "yarn": "yarn",
    "deepseek_yarn": "yarn",
    "telechat3-yarn": "yarn",
    "llama3": "llama3",
    "longrope": "suscaled",
    "su": "suscaled",
    "proportional": "proportional",
}
_NEEDS_ORIGINAL = ("yarn", "deepseek_yarn", "llama3", "longrope")
_APART = ("rope_theta", "partial_rotary_factor")


def scaling_kind(scaling: dict[str, Any]) -> str:
    """The kind of scaling: ``"default"``, ``"linear"``, ``"yarn"`` and so on."""
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def by_layer_type(parameters: Any) -> bool:
    """Whether rotations are given one a layer type, as ``{"full_attention": {...}, ...}``."""
    return isinstance(parameters, dict) and any(isinstance(v, dict) for v in parameters.values())


def old_form(config: dict[str, Any]) -> dict[str, Any]:
    """What to change in a model's config so that mlx-lm's class turns as the config says.

    Raises:
        UnsupportedModel: rotations that differ between layer types, where the class has one.
    """
    changes = _changes(config)
    text = config.get("text_config")
    if isinstance(text, dict) and (inner := _changes(text)):
        changes["text_config"] = {**text, **inner}
    return changes


def _changes(config: dict[str, Any]) -> dict[str, Any]:
    """The changes of one level of a config."""
    parameters, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    # As transformers 5 has it: an old entry beside a new one counts.
    rope = scaling or parameters
    if not isinstance(rope, dict) or not rope:
        return {}
    if by_layer_type(rope):
        return _from_layers(config, {k: v for k, v in rope.items() if isinstance(v, dict)})
    if scaling and isinstance(parameters, dict) and not by_layer_type(parameters):
        rope = {**{key: parameters[key] for key in _APART if key in parameters}, **rope}
    return _from_one(config, rope)


def _from_one(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """The older words for one rotation of all layers."""
    changes: dict[str, Any] = {}
    if (theta := rope.get("rope_theta")) is not None:
        changes |= {"rope_theta": theta, "rotary_emb_base": theta}
    if (part := rope.get("partial_rotary_factor")) is not None:
        changes |= {"partial_rotary_factor": part, "rotary_pct": part}
    kind = scaling_kind(rope)
    if kind == "default":
        if not config.get("rope_scaling"):
            changes["rope_scaling"] = None
        return changes
    if kind == "dynamic" and "alpha" not in rope:
        return changes | _without_dynamic(config, rope)
    scaling = {key: value for key, value in rope.items() if key not in _APART}
    scaling |= {"type": kind, "rope_type": kind}
    if isinstance(scaling.get("factor"), int):
        scaling["factor"] = float(scaling["factor"])
    _mend(kind, scaling, config)
    if kind in _NEEDS_ORIGINAL:
        original = (
            config.get("original_max_position_embeddings")
            or scaling.get("original_max_position_embeddings")
            or config.get("max_position_embeddings")
        )
        if original is not None:
            scaling["original_max_position_embeddings"] = original
            changes["original_max_position_embeddings"] = original
    changes["rope_scaling"] = scaling
    if config.get("rope_parameters"):
        changes["rope_parameters"] = {**config["rope_parameters"], **scaling}
    return changes


def _mend(kind: str, scaling: dict[str, Any], config: dict[str, Any]) -> None:
    """Say what a class passes by with what it reads, where that comes to the same."""
    attention, factor = scaling.get("attention_factor"), scaling.get("factor")
    if "yarn" in kind and isinstance(attention, (int, float)) and factor and factor > 1:
        # The rotation's scale is (m ln f + 1) / (n ln f + 1), with m and n a tenth of the two.
        step = 0.1 * math.log(factor)
        scaling["mscale"] = (attention * (step * scaling.get("mscale_all_dim", 0) + 1) - 1) / step
    original = scaling.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings"
    )
    limit = config.get("max_position_embeddings")
    if kind == "longrope" and original and limit and limit <= original:
        scaling["long_factor"] = scaling.get("short_factor")  # only short texts are to come


def passed_by(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a rotation that count and that mlx-lm's classes do not read.

    Args:
        model: as mlx-lm built it.
        config: one level of what it was built from.
    """
    found: dict[str, Any] = {}
    modules = [module for _, module in model.named_modules()]
    turns = [m for m in modules if re.search("rope|rotary", type(m).__name__, re.IGNORECASE)]
    theta = config.get("rope_theta")
    if turns and isinstance(theta, (int, float)) and float(theta) not in _bases(modules, turns):
        found["rope_theta"] = theta
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and not by_layer_type(scaling):
        if "yarn" in scaling_kind(scaling) and scaling.get("truncate") is False:
            found["rope_scaling.truncate"] = False
        short, long = scaling.get("short_factor"), scaling.get("long_factor")
        if short is not None and short != long:
            found["rope_scaling.short_factor"] = short
    return found


def _without_dynamic(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """No scaling, and a context in which there is none to do."""
    changes: dict[str, Any] = {"rope_scaling": None}
    if original := rope.get("original_max_position_embeddings"):
        changes["max_position_embeddings"] = original
    if config.get("rope_parameters"):
        kept = {key: rope[key] for key in _APART if key in rope}
        changes["rope_parameters"] = {**kept, "rope_type": "default"}
    return changes


def _from_layers(config: dict[str, Any], layers: dict[str, Any]) -> dict[str, Any]:
    """The older words for rotations by layer type, where there are such words."""
    model_type = config.get("model_type")
    if model_type in _READ_BY_LAYER:
        return {}
    first, *others = layers.values()
    if all(rope == first for rope in others):
        alike = {**config, "rope_scaling": None, "rope_parameters": first}
        return {"rope_parameters": first, **_from_one(alike, first)}
    local = layers.get("sliding_attention", {})
    everywhere = layers.get("full_attention", {})
    known = model_type in _LOCAL_AND_GLOBAL or (
        model_type in _SCALED_IF_GLOBAL and local.get("rope_theta") == everywhere.get("rope_theta")
    )
    if known and everywhere and scaling_kind(local) == "default":
        plain = {**config, "rope_scaling": None, "rope_parameters": None}
        changes = _from_one(plain, everywhere)
        if "rope_theta" in local and model_type in _LOCAL_AND_GLOBAL:
            changes["rope_local_base_freq"] = local["rope_theta"]
        return changes
    raise UnsupportedModel(
        f"config.json gives each kind of layer a rotation of its own ({', '.join(sorted(layers))} "
        f"in rope_parameters), which mlx-lm's {model_type} does not read"
    )


def check_rotation(model: Any, config: dict[str, Any]) -> None:
    """Look whether a model turns as its config says.

    Args:
        model: as mlx-lm built it.
        config: what it was built from, :func:`old_form` applied.

    Raises:
        UnsupportedModel: it does not: mlx-lm's class has no place for the setting.
    """
    modules = [module for _, module in model.named_modules()]
    turns = [m for m in modules if re.search("rope|rotary", type(m).__name__, re.IGNORECASE)]
    for level in (config, config.get("text_config")):
        if not isinstance(level, dict):
            continue
        name = level.get("model_type") or config.get("model_type")
        scaling = level.get("rope_scaling")
        if isinstance(scaling, dict) and not by_layer_type(scaling):
            kind = scaling_kind(scaling)
            if not _scaled(turns, kind, scaling.get("factor")):
                raise UnsupportedModel(
                    f"config.json asks for positions scaled by {kind}, which mlx-lm's {name} "
                    "does not do; without rope_scaling it runs, up to its original context"
                )
        parameters = level.get("rope_parameters")
        if isinstance(parameters, dict) and isinstance(parameters.get("rope_theta"), (int, float)):
            theta = float(parameters["rope_theta"])
            if theta not in _bases(modules, turns):
                raise UnsupportedModel(
                    f"config.json has rope_theta {theta:g} in rope_parameters, which mlx-lm's "
                    f"{name} does not read"
                )


def _scaled(turns: list[Any], kind: str, factor: Any) -> bool:
    """Whether some rotation scales as asked, as far as its class or numbers say."""
    if kind == "linear":
        plain = [module for module in turns if type(module) is nn.RoPE]
        return any(abs(module.scale * float(factor) - 1) < 1e-6 for module in plain)
    wanted = _SHOWS_AS.get(kind)
    return wanted is None or any(wanted in type(module).__name__.lower() for module in turns)


def _bases(modules: list[Any], turns: list[Any]) -> set[float]:
    """The bases that a model's rotations have, or that its classes were given."""
    found = {float(module.base) for module in turns if type(module) is nn.RoPE}
    for module in modules:
        for record in (getattr(module, "args", None), getattr(module, "config", None)):
            fields = getattr(record, "__dict__", {})
            found |= {
                float(value)
                for name, value in fields.items()
                if re.search("theta|base", name) and isinstance(value, (int, float))
            }
    return found
