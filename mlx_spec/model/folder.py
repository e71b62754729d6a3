"""A model's folder before anything of it is loaded: is all there, and is each file what it says?

Folders arrive incomplete: a shard is missing, Git LFS left pointers instead of files, a download
broke off. mlx-lm would say so in terms of tensors, or not at all. Only headers are read here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_spec.errors import ModelLoadError

_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.tiktoken")
_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_PART = re.compile(r"(?P<begin>.*-)(?P<number>\d+)-of-(?P<count>\d{1,6})(?P<end>\.safetensors)")


def check_folder(folder: Path) -> None:
    """Say what is missing or broken in a model's folder.

    Raises:
        ModelLoadError: with the file's name and what is wrong with it.
    """
    if not folder.exists():
        raise ModelLoadError(
            "no such folder or file; expected a model's folder, a .gguf file, a hub id (org/name), "
            "smollm2, demo or demo-draft"
        )
    if not folder.is_dir():
        raise ModelLoadError("is a file, expected a model's folder or a .gguf file")
    if not (folder / "config.json").is_file():
        raise ModelLoadError("no config.json, so this is no model's folder")
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelLoadError("config.json names no model_type")
    _check_weights(folder)
    tokenizer = [path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)]
    if not tokenizer:
        raise ModelLoadError("no tokenizer (tokenizer.json or tokenizer.model)")
    for path in tokenizer:
        check_content(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelLoadError: it cannot be read, or is no object.
    """
    check_content(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise ModelLoadError(f"{path.name} cannot be read (it holds no JSON object)")
    return record


def check_content(path: Path) -> None:
    """Refuse links to nothing and the pointers that Git LFS leaves in place of large files."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except FileNotFoundError:
        raise ModelLoadError(f"{path.name} is a link to a file that is not there") from None
    except IsADirectoryError:
        return
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be read ({error.strerror})") from error
    if start == _POINTER:
        raise ModelLoadError(
            f"{path.name} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
        )


def _check_weights(folder: Path) -> None:
    """Every file of weights is there and whole, and no tensor in two of them."""
    files = sorted(folder.glob("model*.safetensors"))
    names = [path.name for path in files]
    missing = _missing(names, _indexed(folder))
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


def _indexed(folder: Path) -> set[str]:
    """The files that the index of a model in several files names."""
    path = folder / _INDEX
    weight_map = read_json(path).get("weight_map") if path.exists() else None
    return {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, whose length must be what its header says.

    Raises:
        ModelLoadError: it is cut off, or no safetensors file.
    """
    check_content(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise ModelLoadError(f"{path.name} is no safetensors file, or broke off")
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ModelLoadError(f"{path.name} is no safetensors file") from None
    if size < 8 + length + end:
        raise ModelLoadError(
            f"{path.name} broke off: a safetensors file of {8 + length + end:,} bytes of which "
            f"{size:,} are there"
        )
    return list(tensors)


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
