"""The weights of a GGUF file, under the names and in the shapes of mlx-lm's class.

Each parameter of the class asks for its tensor; what is missing, of another shape or asked for by
none is refused. A quantized tensor becomes one of MLX's kinds with the very same weights where
there is such a kind (``kinds``), or what ``Form`` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType
from mlx.utils import tree_flatten

from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.gguf.architectures import Architecture, Config
from mlx_spec.model.gguf.file import GGUFFile
from mlx_spec.model.gguf.kinds import GROUP, pack, packs
from mlx_spec.model.gguf.names import TensorNames, row_order

_Q = GGMLQuantizationType
_FLOATS = (_Q.F32, _Q.F16, _Q.BF16, _Q.F64)
# What the file holds beside weights: the config has it.
_OF_CONFIG = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
_HEAD = "lm_head.weight"
# The tensor that holds a parameter, None for a bias that no layer has; the parameter's shape.
_Place = tuple[gguf.ReaderTensor | None, tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """What weights become.

    Attributes:
        plain: everything plain, with the very values that the file's kinds stand for.
        requantize: what becomes of kinds that MLX has not: ``"8bit"``, ``"4bit"`` or
            ``"float16"``; None, with ``plain`` only, leaves their values as they are.
        dtype: type of plain weights and of scales.
    """

    plain: bool
    requantize: str | None
    dtype: mx.Dtype


@dataclass(frozen=True)
class Weights:
    """What a class is loaded with.

    Attributes:
        arrays: by parameter.
        quantized: options of ``nn.quantize`` by module, for those that are.
    """

    arrays: dict[str, mx.array]
    quantized: dict[str, dict[str, Any]]


def read_weights(
    file: GGUFFile, model: nn.Module, architecture: Architecture, config: Config, form: Form
) -> Weights:
    """The weights of a file for a model as its class made it.

    Raises:
        ModelLoadError: a tensor is missing, one too many, or of another shape.
        UnsupportedModel: a kind of quantization that the ``gguf`` package does not know.
    """
    places = _assign(file, model, config)
    able = {name for name, module in model.named_modules() if hasattr(module, "to_quantized")}
    weights = Weights({}, {})
    for parameter, (tensor, shape) in places.items():
        if tensor is None:
            weights.arrays[parameter] = mx.zeros(shape, dtype=form.dtype)
            continue
        module, _, leaf = parameter.rpartition(".")
        data = tensor.data
        if architecture.interleaved and (order := row_order(tensor.name, config)) is not None:
            data = data[order]
        data = data.reshape(*shape[:-1], -1)
        if tensor.tensor_type in _FLOATS or leaf != "weight" or module not in able:
            values = _values(file, data, tensor)
            if architecture.one_more and tensor.name.endswith("norm.weight"):
                values = values - 1
            weights.arrays[parameter] = values.astype(form.dtype)
        else:
            _add_quantized(weights, file, module, data, tensor, form)
    return weights


def _assign(file: GGUFFile, model: nn.Module, config: Config) -> dict[str, _Place]:
    """The tensor of every parameter; every tensor of the file has one."""
    names = TensorNames(file.architecture, config["num_hidden_layers"])
    found: dict[str, _Place] = {}
    missing = []
    kinds = {_without_layer(name) for name in file.tensors}
    for parameter, value in tree_flatten(model.parameters()):
        name = names.of(parameter)
        tensor = file.tensors.get(name or "")
        if tensor is None:
            # A class with biases in more places than the model has: they stay out of the sums.
            if parameter.endswith(".bias") and _without_layer(name or "") not in kinds:
                found[parameter] = None, tuple(value.shape)
            elif parameter != _HEAD or not config["tie_word_embeddings"]:
                missing.append(name or parameter)
            continue
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if _long_axes(shape) != _long_axes(value.shape):
            raise ModelLoadError(
                f"{file.name}: {name} is {_shape(shape)}, by the metadata it should be "
                f"{_shape(value.shape)}"
            )
        found[parameter] = tensor, tuple(value.shape)
    if missing:
        raise ModelLoadError(f"{file.name} lacks {_few(missing)}")
    used = {tensor.name for tensor, _ in found.values() if tensor is not None}
    unknown = set(file.tensors) - used - _OF_CONFIG
    if unknown:
        raise UnsupportedModel(
            f"{file.name} holds {_few(sorted(unknown))}, which mlx-lm's "
            f"{config['model_type']} has no place for"
        )
    return found


def _values(file: GGUFFile, data: Any, tensor: gguf.ReaderTensor) -> mx.array:
    """A tensor's values: in its own type if that is one of floats, else in float32."""
    kind = tensor.tensor_type
    if kind in (_Q.F32, _Q.F16):
        return mx.array(data)
    if kind is _Q.BF16:
        return mx.array(data.view(np.uint16)).view(mx.bfloat16)
    try:
        return mx.array(gguf.dequantize(data, kind).astype(np.float32))
    except NotImplementedError:
        raise UnsupportedModel(
            f"{file.name}: {tensor.name} is of kind {kind.name}, which the gguf package does "
            "not read"
        ) from None


def _add_quantized(
    weights: Weights,
    file: GGUFFile,
    module: str,
    data: Any,
    tensor: gguf.ReaderTensor,
    form: Form,
) -> None:
    """A quantized tensor as MLX's own, or plain."""
    kind = tensor.tensor_type
    if packs(kind):
        packed = pack(data, kind)
        parts = [mx.array(packed.weight), mx.array(packed.scales)]
        if packed.biases is not None:
            parts.append(mx.array(packed.biases))
        bits, mode = packed.bits, packed.mode
    elif form.requantize in (None, "float16"):
        dtype = form.dtype if form.requantize is None else mx.float16
        weights.arrays[f"{module}.weight"] = _values(file, data, tensor).astype(dtype)
        return
    else:
        bits, mode = 4 if form.requantize == "4bit" else 8, "affine"
        parts = list(mx.quantize(_values(file, data, tensor), GROUP, bits))
    if form.plain:
        biases = parts[2] if len(parts) > 2 else None
        plain = mx.dequantize(parts[0], parts[1], biases, GROUP, bits, mode)
        weights.arrays[f"{module}.weight"] = plain.astype(form.dtype)
        return
    for name, part in zip(("weight", "scales", "biases"), parts, strict=False):
        floating = mx.issubdtype(part.dtype, mx.floating)
        weights.arrays[f"{module}.{name}"] = part.astype(form.dtype) if floating else part
    weights.quantized[module] = {"group_size": GROUP, "bits": bits, "mode": mode}


def widest_exact(file: GGUFFile, architecture: Architecture) -> mx.Dtype:
    """The type of a file's own floats where 16 bits hold them all, else float32.

    Quantized weights have scales that need float32, and layers whose numbers may need its range:
    only a file of plain 16-bit weights says that these do for the model.
    """
    kinds = {tensor.tensor_type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    if kinds == {_Q.BF16}:
        dtype = mx.bfloat16
    elif kinds == {_Q.F16} and architecture.half:
        dtype = mx.float16
    else:
        return mx.float32
    vectors = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 1]
    exact = all(_exact(_values(file, tensor.data, tensor), dtype) for tensor in vectors)
    return dtype if exact else mx.float32


def _exact(values: mx.array, dtype: mx.Dtype) -> bool:
    return bool(mx.all(values.astype(dtype).astype(mx.float32) == values.astype(mx.float32)))


def plain_bytes(tensors: Mapping[str, gguf.ReaderTensor]) -> int:
    """Bytes of all weights as float32."""
    return sum(4 * int(tensor.n_elements) for tensor in tensors.values())


def _without_layer(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name)


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    """A shape without the axes of length 1, which files leave out."""
    return [size for size in shape if size != 1]


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _few(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 3 else ""
    return ", ".join(names[:2] if more else names) + more
