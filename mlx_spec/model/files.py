"""Single files of a model, before anything is loaded from them: is each what it says it is?

mlx-lm and transformers would say so in terms of tensors and types, without the file's name, or not
at all. Of weights only the header is read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mlx_spec.errors import ModelLoadError

_POINTER = b"version https://git-lfs"
# Bytes of an element, of the kinds that MLX reads.
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4}
_SIZES |= {"F32": 4, "U64": 8, "I64": 8, "C64": 8, "F8_E4M3": 1, "F8_E8M0": 1}


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
    except RecursionError:
        raise ModelLoadError(f"{path.name} cannot be read (it is nested too deeply)") from None
    if not isinstance(record, dict):
        raise ModelLoadError(f"{path.name} cannot be read (it holds no JSON object)")
    return record


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, whose header and length must fit each other.

    Raises:
        ModelLoadError: it is cut off, no safetensors file, or a tensor's entry makes no sense.
    """
    check_content(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise ModelLoadError(f"{path.name} is no safetensors file, or broke off")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise ModelLoadError(f"{path.name} is no safetensors file")
    header.pop("__metadata__", None)
    spans = sorted((*_span(path.name, name, entry), name) for name, entry in header.items())
    end = 0
    for begin, stop, name in spans:
        if begin < end:
            raise ModelLoadError(f"{path.name} is broken: {name} lies over another tensor")
        end = stop
    if size != 8 + length + end:
        broke = "broke off" if size < 8 + length + end else "has bytes that belong to nothing"
        raise ModelLoadError(
            f"{path.name} {broke}: a safetensors file of {8 + length + end:,} bytes of which "
            f"{size:,} are there"
        )
    return list(header)


def _span(file: str, name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, which its type and shape must agree with."""
    try:
        begin, stop = entry["data_offsets"]
        shape, kind = entry["shape"], entry["dtype"]
        whole = all(type(n) is int and n >= 0 for n in (begin, stop, *shape))
    except (TypeError, ValueError, LookupError):
        whole = False
    if not whole or not isinstance(kind, str):
        raise ModelLoadError(f"{file} is no safetensors file: its entry of {name} makes no sense")
    if kind not in _SIZES:
        raise ModelLoadError(f"{file} holds {name} as {kind}, which MLX does not read")
    if stop - begin != math.prod(shape) * _SIZES[kind]:
        raise ModelLoadError(
            f"{file} is broken: {name} is {kind} of shape {shape}, in {stop - begin:,} bytes"
        )
    return begin, stop
