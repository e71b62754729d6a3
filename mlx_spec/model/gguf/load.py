"""``load_gguf``: a model and its tokenizer out of one file that holds all of both.

The class and its arguments are mlx-lm's, as for a folder; config, weights and tokenizer come from
the file. The weights are in memory once: nothing is converted on disk.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_spec.errors import ModelLoadError
from mlx_spec.load_config import LoadConfig
from mlx_spec.model.gguf.architectures import Config, architecture_of
from mlx_spec.model.gguf.config import config_of, warn_of_unasked
from mlx_spec.model.gguf.file import GGUFFile, open_gguf
from mlx_spec.model.gguf.tokenizer import load_gguf_tokenizer
from mlx_spec.model.gguf.weights import Form, plain_bytes, read_weights, widest_exact
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.rotation import old_form
from mlx_spec.platform import recommended_memory

# Share of the memory that a model's plain weights may take on the CPU.
_SHARE = 0.5


def load_gguf(path: Path, options: LoadConfig) -> tuple[nn.Module, Any, Config]:
    """Load a model and its tokenizer from a GGUF file.

    Args:
        path: the file, or any part of a model in several.
        options: of ``load``: ``config_overrides``, ``dtype``, ``quantize``, ``tokenizer_config``
            and ``gguf_requantize`` are used.

    Returns:
        The model, its tokenizer and the config that it was built from.

    Raises:
        ModelLoadError: the file is broken, or lacks something.
        UnsupportedModel: an architecture, a tokenizer or a kind of weights that is not known.

    Warns:
        RuntimeWarning: the file has entries of its architecture that nobody reads.
    """
    file = open_gguf(path)
    model, config = load_gguf_model(file, options)
    return model, load_gguf_tokenizer(file, dict(options.tokenizer_config or {})), config


def load_gguf_model(
    file: GGUFFile, options: LoadConfig, plain: bool | None = None
) -> tuple[nn.Module, Config]:
    """The model of an opened file alone; arguments and errors as of :func:`load_gguf`.

    On the CPU, where quantized weights multiply slowly, they come out plain if half the memory
    holds them; elsewhere they stay quantized.

    Args:
        file: opened.
        options: of ``load``.
        plain: whether quantized weights come out plain; None: as said above.
    """
    architecture = architecture_of(file)
    config = config_of(file, architecture)
    config |= options.changes_to(config)
    config |= old_form(config)
    warn_of_unasked(file)
    model = _build(config)
    if plain is None:
        plain = _comes_out_plain(file, options)
    requantize = options.gguf_requantize
    form = Form(
        plain,
        requantize if requantize != "auto" else None if plain else "8bit",
        mx.float32 if plain else widest_exact(file, architecture),
    )
    weights = read_weights(file, model, architecture, config, form)
    arrays = model.sanitize(weights.arrays) if hasattr(model, "sanitize") else weights.arrays
    if weights.quantized:
        nn.quantize(model, class_predicate=lambda name, _: weights.quantized.get(name, False))
    model.eval()
    model.load_weights(list(arrays.items()), strict=True)
    return model, config


def _comes_out_plain(file: GGUFFile, options: LoadConfig) -> bool:
    return (
        on_cpu()
        and options.quantization is None
        and options.dtype in (None, "float32", mx.float32)
        and plain_bytes(file.tensors) <= _SHARE * recommended_memory()
    )


def _build(config: Config) -> nn.Module:
    """A model of mlx-lm's class, its weights not yet there."""
    from mlx_lm.utils import MODEL_REMAPPING

    name = str(config["model_type"])
    try:
        module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
    except ImportError as error:
        raise ModelLoadError(f"this mlx-lm has no {name}") from error
    try:
        model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    except Exception as error:  # whatever numbers of a broken file make of a class
        raise ModelLoadError(
            f"the metadata makes no {name} ({type(error).__name__}: {error})"
        ) from error
    return model
