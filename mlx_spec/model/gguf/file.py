"""A GGUF file opened: its metadata and its tensors, whole and in one byte order, or refused.

The ``gguf`` package reads it, memory-mapped: of a file of many gigabytes only the header is read. A
model in several files (``-00001-of-00003``) is opened as one.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mlx_spec.errors import ModelLoadError
from mlx_spec.model.files import check_content

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_PART = re.compile(r"(?P<begin>.+-)(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# An entry of the metadata takes 13 bytes at least, a tensor's description 24.
_ENTRY, _DESCRIPTION = 13, 24


@dataclass(frozen=True)
class GGUFFile:
    """What is in a file.

    Attributes:
        name: the file's, as messages say it.
        metadata: values by their full names (``"llama.block_count"``).
        tensors: the ``gguf`` package's descriptions by name; their data is mapped, not read.
        asked: full names of the metadata that somebody asked for.
    """

    name: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor] = field(repr=False)
    asked: set[str] = field(default_factory=set, repr=False)

    @property
    def architecture(self) -> str:
        """``general.architecture``, as ``"llama"``."""
        return str(self.need("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the metadata; a name that begins with a dot is the architecture's own."""
        full = self._full(name)
        self.asked.add(full)
        return self.metadata.get(full, default)

    def need(self, name: str) -> Any:
        """As :meth:`get`.

        Raises:
            ModelLoadError: there is none.
        """
        if (value := self.get(name)) is None:
            raise ModelLoadError(f"{self.name} has no {self._full(name)} in its metadata")
        return value

    def _full(self, name: str) -> str:
        return f"{self.metadata.get('general.architecture')}{name}" if name[0] == "." else name

    def vector(self, name: str) -> np.ndarray[Any, Any] | None:
        """A small tensor's values as float32, or None if the file has none of that name."""
        tensor = self.tensors.get(name)
        return None if tensor is None else gguf.dequantize(tensor.data, tensor.tensor_type)


def open_gguf(path: Path) -> GGUFFile:
    """Open a file, and its other parts if it is one of several.

    Raises:
        ModelLoadError: it is none, is broken or cut off, or a part of it is missing.
    """
    paths = _parts(path)
    metadata: dict[str, Any] = {}
    tensors: dict[str, gguf.ReaderTensor] = {}
    for part in paths:
        found, described = _read(part)
        metadata = {**found, **metadata}  # the first part's, which describes the model
        for tensor in described:
            if tensor.name in tensors:
                raise ModelLoadError(f"{part.name} holds {tensor.name}, and so does another part")
            tensors[tensor.name] = tensor
    _check_split(path, len(paths), metadata, len(tensors))
    return GGUFFile(path.name, metadata, tensors)


def _parts(path: Path) -> list[Path]:
    """All files of the model that a file belongs to, in order."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    parts = [
        path.with_name(f"{named['begin']}{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelLoadError(
            f"{path.name} is one of {count} parts of a model, of which {missing[0]}{more} "
            "is missing beside it"
        )
    return parts


def _check_split(path: Path, parts: int, metadata: Mapping[str, Any], tensors: int) -> None:
    """The number of parts and of tensors that a model in several files says it has."""
    count = metadata.get("split.count", 1)
    if count > 1 and count != parts:
        raise ModelLoadError(
            f"{path.name} is one of {count} parts of a model; give the parts their names back "
            f"(model-00001-of-{count:05}.gguf) and load any of them"
        )
    wanted = metadata.get("split.tensors.count", tensors)
    if count > 1 and wanted != tensors:
        raise ModelLoadError(f"the parts of {path.name} hold {tensors} tensors of {wanted}")


def _read(path: Path) -> tuple[dict[str, Any], list[gguf.ReaderTensor]]:
    """The metadata and tensors of one file."""
    _check_start(path)
    try:
        with _no_collection():
            reader = _Reader(path)
            values = {name: field.contents() for name, field in reader.fields.items()}
    except _BrokenOff as error:
        raise ModelLoadError(
            f"{path.name} broke off: {error.wanted:,} bytes are needed at least, "
            f"{path.stat().st_size:,} are there"
        ) from None
    except (ValueError, LookupError, OverflowError, MemoryError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(f"{path.name} is a broken GGUF file ({reason})") from error
    return values, reader.tensors


def _check_start(path: Path) -> None:
    """The first bytes, by which a file that is none of this kind shows."""
    check_content(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(24)
    if start[:4] != _MAGIC:
        what = "is empty" if not size else f"begins with {start[:4]!r}, not with {_MAGIC!r}"
        raise ModelLoadError(f"{path.name} is no GGUF file: it {what}")
    if len(start) < 24:
        raise ModelLoadError(f"{path.name} broke off: only {size} bytes are there")
    version = int.from_bytes(start[4:8], "little")
    if version not in _VERSIONS:
        if int.from_bytes(start[4:8], "big") in _VERSIONS:
            raise ModelLoadError(
                f"{path.name} is written big-endian; convert it with gguf-convert-endian"
            )
        raise ModelLoadError(f"{path.name} has GGUF version {version}, expected 2 or 3")
    tensors, entries = (int.from_bytes(start[at : at + 8], "little") for at in (8, 16))
    if tensors * _DESCRIPTION + entries * _ENTRY > size:
        raise ModelLoadError(
            f"{path.name} broke off or is broken: {tensors:,} tensors and {entries:,} entries of "
            f"metadata do not fit its {size:,} bytes"
        )


class _BrokenOff(Exception):
    """Bytes past a file's end are asked for: ``wanted``, the length that would do."""

    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class _Bytes:
    """A file's bytes, to be cut into slices; past its end is an error, not an empty slice.

    Slices are plain arrays: those of ``np.memmap`` cost several times as much, and a vocabulary is
    a million of them.
    """

    def __init__(self, mapped: np.ndarray[Any, Any]) -> None:
        self._plain = mapped.view(np.ndarray)

    def texts(self, at: int, count: int) -> tuple[list[memoryview], int]:
        """Texts with their lengths before them, and where the last one ends."""
        whole, texts = self._plain.data, []
        for _ in range(count):
            if at + 8 > len(whole):
                raise _BrokenOff(at + 8)
            begin = at + 8
            at = begin + int.from_bytes(whole[at:begin], "little")
            if at > len(whole):
                raise _BrokenOff(at)
            texts.append(whole[begin:at])
        return texts, at

    def __getitem__(self, part: slice) -> np.ndarray[Any, Any]:
        if part.stop > len(self._plain):
            raise _BrokenOff(part.stop)
        return self._plain[part]


class _Reader(gguf.GGUFReader):
    """The package's reader over :class:`_Bytes`, with lists read at once, not item by item."""

    @property
    def data(self) -> Any:
        """What the reader takes its slices from."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray[Any, Any]) -> None:
        self._bytes = _Bytes(mapped)

    def _get_field_parts(self, orig_offs: int, raw_type: int, *more: Any) -> Any:
        """Of a list the same parts in one array, or one view for each text.

        A step of the package's own loop costs 10 microseconds, and a vocabulary has a million.
        """
        item = None
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            item = gguf.GGUFValueType(kind[0])
        start = orig_offs + 12
        types = [gguf.GGUFValueType.ARRAY, item]
        if item == gguf.GGUFValueType.STRING:
            texts, end = self._bytes.texts(start, int(count[0]))
            return end - orig_offs, [kind, count, *texts], list(range(2, 2 + len(texts))), types
        if item in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[item], int(count[0]))
            return 12 + values.nbytes, [kind, count, values], [2], types
        return super()._get_field_parts(orig_offs, raw_type, *more)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without looking for garbage, of which a million new small arrays hold none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
