"""Which model a prompt cache was made for: read from the file's header, with nothing loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def model_of(path: Path) -> str | None:
    """The model that a file names, from its header alone; None where it names none."""
    try:
        with path.expanduser().open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        name = header["__metadata__"]["0.model"]
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError):
        return None
    return name if isinstance(name, str) else None
