"""Files that commands make at the end: there whole or not at all, and refused before the work.

Whoever waits for an answer for minutes should not learn at the end that it cannot be kept.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlx_spec.errors import OutputError


def check_writable(path: Path, where: str) -> None:
    """Refuse a file that cannot be made, as far as that can be seen without making it.

    Args:
        path: the file.
        where: begins the error.

    Raises:
        OutputError: its folder is not there or takes no files, or a folder has its name.
    """
    path = path.expanduser()
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{where}: is a folder, expected a file")
    if not folder.is_dir():
        raise OutputError(f"{where}: no such folder as {folder}")
    if not path.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{where}: no file can be made in {folder}")


def write_json(path: Path, value: Any, where: str) -> None:
    """Write a value as JSON for people, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n", where)


def write_whole(path: Path, text: str, where: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    path = path.expanduser().resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists() and not path.is_file():  # a pipe, a device: nothing to be replaced
            path.write_text(text, encoding="utf-8")
            return
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{where}: {error.strerror}") from error
