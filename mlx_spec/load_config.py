"""``LoadConfig``: how a model is loaded, one frozen object behind ``load`` and the flags.

Everything is checked where it is written, before a file is opened or a byte downloaded. This module
imports ``errors`` only.

Example::

    LoadConfig(dtype="bfloat16", quantize=4)
    LoadConfig(config_overrides={"max_position_embeddings": 131072, "rope_scaling.factor": 4.0})
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from mlx_spec.errors import InvalidRequest

DTYPES = ("float32", "float16", "bfloat16")
# What of a GGUF file has no exact place among MLX's kinds of quantization may become.
GGUF_REQUANTIZE = ("auto", "8bit", "4bit", "float16")
# How processes divide a model.
SHARDS = ("tensor", "pipeline")
# What mlx-lm's and transformers' users write.
_HINTS = {
    "model_config": "it is called config_overrides",
    "torch_dtype": "it is called dtype",
    "return_config": "the model's args hold it",
    "bits": "give quantize=4",
    "q_bits": "give quantize=4",
    "draft_model": "load it by itself, and give it to generate",
}
# The (bits, group sizes) of each mode of MLX's quantization, the usual ones first.
_MODES = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


@dataclass(frozen=True)
class WeightQuantization:
    """How plain weights are quantized as they are loaded; MLX's own kinds.

    Attributes:
        bits: of a weight; None for the mode's usual number.
        group_size: weights that share a scale; None for the mode's usual number.
        mode: ``"affine"``, ``"mxfp4"``, ``"mxfp8"`` or ``"nvfp4"``.

    Raises:
        InvalidRequest: what MLX does not have.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidRequest(
                f"[LoadConfig] quantize: mode {self.mode!r}, expected one of {', '.join(_MODES)}"
            )
        for name, known in zip(("bits", "group_size"), _MODES[self.mode], strict=True):
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, known[0])
            elif isinstance(value, bool) or value not in known:
                raise InvalidRequest(
                    f"[LoadConfig] quantize: {name}={value!r}, expected one of "
                    f"{sorted(known)} ({self.mode})"
                )

    @classmethod
    def of(cls, value: WeightQuantization | int | str | bool | None) -> WeightQuantization | None:
        """What people write for it: ``4``, ``"4"``, ``"4:32"`` (bits:group size), ``"mxfp4"``.

        Raises:
            InvalidRequest: none of these.
        """
        if value is None or value is False or isinstance(value, cls):
            return value or None
        text = "4" if value is True else str(value).strip()
        if text in _MODES:
            return cls(mode=text)
        parts = text.split(":")
        if len(parts) <= 2 and all(part.isascii() and part.isdigit() for part in parts):
            return cls(int(parts[0]), int(parts[1]) if len(parts) == 2 else None)
        raise InvalidRequest(
            f"[LoadConfig] quantize={value!r}, expected bits (4), bits:group size (4:32) or "
            f"one of {', '.join(_MODES)}"
        )


@dataclass(frozen=True)
class LoadConfig:
    """How a model and its tokenizer are loaded.

    Attributes:
        dtype: type of the floating weights: ``"float32"``, ``"float16"``, ``"bfloat16"`` or an
            ``mx.Dtype``. None keeps the file's, but takes float32 on the CPU, where products of
            16-bit floats are some 50 times slower. On the CPU ``"float32"`` also makes quantized
            weights plain: the same values in several times the memory, and much faster there.
        quantize: quantize plain weights on loading: bits (4), ``"4:32"`` (bits:group size), a mode
            (``"mxfp4"``) or a :class:`WeightQuantization`. What is quantized stays as it is.
        adapter_path: folder of LoRA adapters to apply, as ``mlx_lm.lora`` writes them.
        revision: branch, tag or commit of a hub repository.
        config_overrides: entries of config.json to replace before the model is built, by name;
            a dot leads into an entry (``"rope_scaling.factor"``).
        trust_remote_code: let the model's folder bring Python code that is then run.
        tokenizer_config: further options for the tokenizer.
        lazy: leave the weights unread until they are used, by this thread: no other can read
            them. Everything else is computed when ``load`` returns.
        kernels: Metal kernels of our own to bind into it: ``"auto"`` (those found right and
            quicker on this machine, in at most two seconds of the first loads), ``"metal"`` (all)
            or ``"reference"`` (none); see ``kernel_choice``.
        gguf_requantize: what becomes of a GGUF file's weights of kinds that MLX has not:
            ``"8bit"``, ``"4bit"`` (groups of 32) or ``"float16"``. ``"auto"`` is 8bit where
            weights stay quantized; where they come out plain their values stay as they are.
        shard: ``"tensor"`` (each process a part of every matrix) or ``"pipeline"`` (each some of
            the layers): the processes that ``mlx.launch`` has started hold the model together.
            None: each process all of it.

    Raises:
        InvalidRequest: a value outside its range.
    """

    dtype: Any = None
    quantize: WeightQuantization | int | str | None = None
    adapter_path: str | os.PathLike[str] | None = None
    revision: str | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)
    trust_remote_code: bool = False
    tokenizer_config: Mapping[str, Any] | None = field(default=None, hash=False)
    lazy: bool = False
    kernels: str = "auto"
    gguf_requantize: str = "auto"
    shard: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dtype, (str, int, float)) and self.dtype not in DTYPES:
            raise InvalidRequest(
                f"[LoadConfig] dtype={self.dtype!r}, expected one of {', '.join(DTYPES)}"
            )
        object.__setattr__(self, "quantize", WeightQuantization.of(self.quantize))
        if not isinstance(self.config_overrides, Mapping) or not all(
            isinstance(key, str) and all(key.split(".")) for key in self.config_overrides
        ):
            raise InvalidRequest(
                f"[LoadConfig] config_overrides={self.config_overrides!r}, expected names of "
                'config.json and their values: {"rope_theta": 1e6}'
            )
        if self.gguf_requantize not in GGUF_REQUANTIZE:
            raise InvalidRequest(
                f"[LoadConfig] gguf_requantize={self.gguf_requantize!r}, expected one of "
                f"{', '.join(GGUF_REQUANTIZE)}"
            )
        if self.shard is not None:
            self._check_shard()

    def _check_shard(self) -> None:
        if self.shard not in SHARDS:
            raise InvalidRequest(
                f"[LoadConfig] shard={self.shard!r}, expected one of {', '.join(SHARDS)}"
            )
        if self.kernels == "metal":
            raise InvalidRequest(
                f"[LoadConfig] shard={self.shard!r} runs without our kernels on all machines "
                "alike; leave kernels='metal' out"
            )

    @property
    def quantization(self) -> WeightQuantization | None:
        """``quantize``, as the object that it is kept as."""
        return self.quantize  # type: ignore[return-value]

    def changes_to(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a config that ``config_overrides`` changes, whole.

        Raises:
            InvalidRequest: a dot leads into what is no object.
        """
        changes: dict[str, Any] = {}
        for name, value in self.config_overrides.items():
            first, *path = name.split(".")
            changes[first] = _replaced(changes.get(first, config.get(first)), path, value, name)
        return changes


def _replaced(entry: Any, path: list[str], value: Any, name: str) -> Any:
    """``entry`` with the value at the end of the path in it; an entry that is not there is made."""
    if not path:
        return value
    if entry is None:
        entry = {}
    if not isinstance(entry, Mapping):
        raise InvalidRequest(
            f"[LoadConfig] config_overrides names {name!r}, but the config has {entry!r} before "
            f"the last {len(path)} of its names, which is no object"
        )
    return {**entry, path[0]: _replaced(entry.get(path[0]), path[1:], value, name)}


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """``key=value`` as the command line has it; values are JSON, or else plain texts.

    Raises:
        InvalidRequest: no ``=``, or no name before it.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not all(name.strip().split(".")):
            raise InvalidRequest(
                f"[flags] --set {text!r}, expected KEY=VALUE, as rope_theta=1e6 or "
                "rope_scaling.factor=4"
            )
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


class LoadOptions(TypedDict, total=False):
    """Fields of :class:`LoadConfig` as keywords: ``load(name, dtype="float32")``."""

    dtype: Any
    quantize: WeightQuantization | int | str | None
    adapter_path: str | os.PathLike[str] | None
    revision: str | None
    config_overrides: Mapping[str, Any]
    trust_remote_code: bool
    tokenizer_config: Mapping[str, Any] | None
    lazy: bool
    kernels: str
    gguf_requantize: str
    shard: str | None


def with_load_options(config: LoadConfig | None, options: Mapping[str, Any]) -> LoadConfig:
    """A config with the fields that were given as keywords in their place.

    Raises:
        InvalidRequest: a keyword that is no field; ``config`` of another type.
    """
    if config is not None and not isinstance(config, LoadConfig):
        raise InvalidRequest(f"[load] config={config!r}, expected a LoadConfig")
    known = [item.name for item in fields(LoadConfig)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = _HINTS.get(name) or (f"did you mean {close[0]!r}?" if close else None)
            raise InvalidRequest(
                f"[load] unknown option {name!r}: {hint or 'there are ' + ', '.join(known)}"
            )
    return replace(config or LoadConfig(), **options)
