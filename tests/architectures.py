"""Every architecture of mlx-lm, built tiny: its ``ModelArgs`` filled by the names of its fields."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import sys
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_flatten, tree_unflatten

from tests.folders import write_folder
from tests.tiny_configs import FAINT, OWN, SEEDS, TEXT
from tests.tiny_sizes import TINY, WIDTHS

LARGEST = 4_000_000  # parameters; a model whose sizes have other names is built at full size


# Parts of models.
NO_MODELS = {"activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla"}
NO_MODELS |= {"pipeline", "rope_utils", "ssm", "switch_layers"}
# What mlx-lm cannot decode here itself, so that nothing can be compared with it: two need Metal,
# one's code adds a mask that is a word.
UNDECODED = {"bitnet", "muse_spark", "olmo"}


class NotBuilt(Exception):
    """Why an architecture could not be built."""


def names() -> list[str]:
    """Every architecture that mlx-lm ships."""
    found = [info.name for info in pkgutil.iter_modules(mlx_lm.models.__path__)]
    return [name for name in found if name not in NO_MODELS]


def module_of(name: str) -> Any:
    """The module of an architecture; what it only looks for is put in its way."""
    sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))
    return importlib.import_module(f"mlx_lm.models.{name}")


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The config of a tiny model of one architecture."""
    module = module_of(name)
    fields = dataclasses.fields(module.ModelArgs)
    known = {field.name: TINY[field.name] for field in fields if field.name in TINY}
    if name in TEXT:
        inner, beside = TEXT[name]
        known["text_config"] = {**TINY, **OWN.get(inner, {}), "model_type": inner, **beside}
    return {"model_type": name, **known, **OWN.get(name, {}), **changes}


def widened(settings: dict[str, Any], by: int = 4) -> dict[str, Any]:
    """The same config with heads of ``by`` times as many numbers, for caches that pack them."""

    def one(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return widened(value, by)
        if key in WIDTHS and type(value) is int:
            return value * by
        return value * by if key in ("short_factor", "long_factor") else value

    return {key: one(key, value) for key, value in settings.items()}


def build(name: str, seed: int | None = None, wide: bool = False, **changes: Any) -> Any:
    """A tiny random float32 model of one architecture; ``wide``: with heads of 32 numbers.

    Raises:
        NotBuilt: its config wants more than is known here, or the module is no model.
    """
    try:
        module = module_of(name)
        mx.random.seed(SEEDS.get(name, 0) if seed is None else seed)
        settings = config(name, **changes)
        model = module.Model(module.ModelArgs.from_dict(widened(settings) if wide else settings))
    except (Exception, SystemExit) as error:
        raise NotBuilt(f"{name}: {type(error).__name__}: {error}") from error
    size = sum(value.size for _, value in tree_flatten(model.parameters()))
    if size > LARGEST * (4 if wide else 1):
        raise NotBuilt(f"{name}: {size:,} parameters by its own defaults")
    faint = 0.1 if name in FAINT else 1.0
    weights = [
        (path, _random(value) * (faint if "embed" in path else 1))
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


def _random(like: mx.array) -> mx.array:
    """Weights large enough that the text varies; vectors stay as they are."""
    if like.dtype == mx.uint32:  # packed
        return mx.random.randint(0, 2**31 - 1, like.shape).astype(mx.uint32)
    if like.ndim < 2:
        return like
    return 2 * mx.random.normal(like.shape) * like.shape[-1] ** -0.5
