"""A model's folder before anything of it is loaded: is all there, and is each file what it says?

Folders arrive incomplete: a shard is missing, Git LFS left pointers instead of files, a download
broke off. mlx-lm would say so in terms of tensors, or not at all. Only headers are read here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_spec.errors import ModelLoadError
from mlx_spec.model.catalog import nearest
from mlx_spec.model.files import check_content, read_json, tensor_names

_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.tiktoken")
# Beside config.json.
_SMALL_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "eos_token_id": int,
    "model_max_length": (int, float),
    "max_position_embeddings": int,
    "rope_theta": (int, float),
}
_POSITIVE = ("max_position_embeddings", "rope_theta")
_INDEX = "model.safetensors.index.json"
_PART = re.compile(r"(?P<begin>.*-)(?P<number>\d+)-of-(?P<count>\d{1,6})(?P<end>\.safetensors)")


def check_folder(folder: Path) -> None:
    """Say what is missing or broken in a model's folder.

    Raises:
        ModelLoadError: with the file's name and what is wrong with it.
    """
    if not folder.exists():
        near = nearest(str(folder))
        hint = f" (did you mean {near}?)" if near else ""
        raise ModelLoadError(
            f"no such folder or file{hint}; expected a model's folder, a .gguf file, a hub id "
            "(org/name), smollm2, smollm2-draft, demo or demo-draft"
        )
    if not folder.is_dir():
        raise ModelLoadError("is a file, expected a model's folder or a .gguf file")
    if not (folder / "config.json").is_file():
        raise ModelLoadError("no config.json, so this is no model's folder")
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelLoadError("config.json names no model_type")
    _check_settings(folder, config)
    _check_weights(folder)
    tokenizer = [path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)]
    if not tokenizer:
        raise ModelLoadError("no tokenizer (tokenizer.json or tokenizer.model)")
    for path in tokenizer:
        check_content(path)


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    """The small files are JSON objects, and what ends a text is given as tokens.

    mlx-lm passes by a ``generation_config.json`` that is no JSON, and the tokens in it with it.
    """
    records = {"config.json": config}
    for name in _SMALL_FILES:
        if (folder / name).is_file() or (folder / name).is_symlink():
            records[name] = read_json(folder / name)
    for name, record in records.items():
        for key, kinds in _KINDS.items():
            value = record.get(key)
            for one in value if isinstance(value, list) and key == "eos_token_id" else [value]:
                if one is not None and (isinstance(one, bool) or not isinstance(one, kinds)):
                    raise ModelLoadError(f"{name} has {key} {value!r}, expected a number")
        for key in _POSITIVE:
            if record.get(key) is not None and record[key] <= 0:
                raise ModelLoadError(f"{name} has {key} {record[key]!r}, expected more than 0")


def _check_weights(folder: Path) -> None:
    """Every file of weights is there and whole, and no tensor in two of them."""
    files = sorted(folder.glob("model*.safetensors"))
    names = [path.name for path in files]
    index = _index(folder)
    missing = _missing(names, set(index.values()))
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ModelLoadError(f"incomplete: {_few(missing)} {are} missing (of the weights' files)")
    if not files:
        raise ModelLoadError("no weights (model*.safetensors)")
    holder: dict[str, str] = {}
    for path in files:
        for tensor in tensor_names(path):
            if tensor in holder:
                raise ModelLoadError(
                    f"{holder[tensor]} and {path.name} both hold {tensor}: one of the files "
                    "belongs to another version of the model"
                )
            holder[tensor] = path.name
    for tensor, name in index.items():
        if name in names and tensor not in holder:
            raise ModelLoadError(
                f"{_INDEX} names {tensor} in {name}, which does not hold it: one of the two "
                "belongs to another version of the model"
            )


def _missing(names: list[str], indexed: set[str]) -> list[str]:
    """Files of weights that others call for: the index, or the numbers in their names.

    An index none of whose files is there, beside other weights, is a leftover and calls for none.
    """
    wanted = set(indexed) if not names or indexed & set(names) else set()
    for name in names:
        if part := _PART.fullmatch(name):
            begin, count, end = part["begin"], part["count"], part["end"]
            width = len(part["number"])
            wanted |= {
                f"{begin}{number:0{width}}-of-{count}{end}" for number in range(1, int(count) + 1)
            }
    return sorted(wanted - set(names))


def _index(folder: Path) -> dict[str, str]:
    """Tensors, and the files that the index of a model in several files names for them."""
    path = folder / _INDEX
    weight_map = read_json(path).get("weight_map", {}) if path.exists() else {}
    if not isinstance(weight_map, dict):
        raise ModelLoadError(f"{_INDEX} cannot be read (its weight_map is no JSON object)")
    return {tensor: str(name) for tensor, name in weight_map.items()}


def check_adapter(folder: str | os.PathLike[str]) -> Path:
    """Check a folder of adapters as ``mlx_lm.lora`` writes them.

    Raises:
        ModelLoadError: what is missing in it, or of which other kind it is.
    """
    path = Path(folder).expanduser()
    where = f"adapter {os.fspath(folder)!r}"
    if not path.is_dir():
        raise ModelLoadError(f"{where}: no such folder")
    foreign = sorted(path.glob("adapter_model.*"))
    weights, settings = path / "adapters.safetensors", path / "adapter_config.json"
    try:
        config = read_json(settings) if settings.is_file() else None
        if foreign or (config is not None and "peft_type" in config):
            raise ModelLoadError(
                "is in PEFT's format, expected one that mlx_lm.lora wrote; merge it into the "
                "model with PEFT (merge_and_unload) and load that"
            )
        if config is None:
            raise ModelLoadError("no adapter_config.json, so this is no adapter of mlx-lm")
        if not weights.is_file():
            raise ModelLoadError("no weights (adapters.safetensors)")
        tensor_names(weights)
        if config.get("fine_tune_type") != "full":
            for name in ("num_layers", "lora_parameters"):
                if name not in config:
                    raise ModelLoadError(f"adapter_config.json names no {name}")
    except ModelLoadError as error:
        raise ModelLoadError(f"{where}: {error}") from error.__cause__
    return path


def _few(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - 2} more" if len(found) > 3 else ""
    return ", ".join(found[:2] if more else found) + more
