"""What was measured on this machine and is kept for later processes: small JSON files.

One place and one manner for all of them: in the user's cache folder, written whole or not at all,
and read with suspicion: what is not there, corrupt or of something else counts as not measured.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def kept_path(kind: str, name: str) -> Path:
    """Where a file of some kind is kept.

    Args:
        kind: a folder of ours: ``"layers"``, ``"kernels"``, ``"costs"``.
        name: without its ending; letters, digits and dashes.
    """
    import platformdirs

    return Path(platformdirs.user_cache_dir("mlx-spec")) / kind / f"{name}.json"


def read_kept(path: Path, key: str, parse: Callable[[Any], T], again: str) -> T | None:
    """What is kept there; None where nothing is, and where it is something else.

    Args:
        path: of :func:`kept_path`.
        key: what the file must say that it is of.
        parse: from its record; whatever it raises of ValueError, KeyError, TypeError and
            AttributeError means that the record is not one of ours.
        again: what happens now, in words: ``"layers are measured anew"``.

    Warns:
        RuntimeWarning: the file is there and is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _note(path, error, again)
        return None
    try:
        held = json.loads(text)
        if held["key"] != key:
            raise ValueError("it is of something else")
        return parse(held["record"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _note(path, error, again)
        return None


def _note(path: Path, error: Exception, again: str) -> None:
    reason = " ".join(str(error).split())[:100]
    warnings.warn(
        f"{path} is not what was written there ({reason}); {again}", RuntimeWarning, stacklevel=4
    )


def keep(path: Path, key: str, record: Mapping[str, Any]) -> bool:
    """Write a record for later processes, whole or not at all; whether that could be."""
    text = json.dumps({"key": key, "record": record})
    part: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes may measure at the same time.
        handle, part = tempfile.mkstemp(suffix=".part", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError:
        if part is not None and os.path.exists(part):
            os.unlink(part)
        return False
    return True
