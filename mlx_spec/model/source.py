"""Where a model lies: the folder or file that a name, a path or a hub id means, fetched if need be.

The hub and its cache are huggingface_hub's; it shows the progress of downloads itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlx_spec.errors import InvalidRequest, ModelLoadError
from mlx_spec.model.catalog import embedded_path
from mlx_spec.model.gguf.hub import fetch_gguf, parse_hub_file
from mlx_spec.model.packaged import PACKAGED, packaged_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# A page of the hub, as people copy it.
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/tree/main)?/?"
)
# What mlx-lm takes from a repository.
_HUB_FILES = (
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)


def check_name(given: object) -> None:
    """Refuse what is neither a name nor a path.

    Raises:
        InvalidRequest: its type.
    """
    if not isinstance(given, (str, os.PathLike)):
        kind = type(given).__name__
        raise InvalidRequest(f"[load] {kind}, expected a model's name, folder or file")


def locate(path_or_repo: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder or file of a model.

    Args:
        path_or_repo: as ``load`` takes it.
        revision: of a hub repository; no other place has one.

    Raises:
        ModelLoadError: the hub does not have it, or cannot be reached.
    """
    embedded = embedded_path(path_or_repo)
    if embedded is not None:
        return embedded
    text = os.fspath(path_or_repo)
    if page := _HUB_PAGE.fullmatch(text):
        return _fetch(page[1], revision)
    if path_or_repo in PACKAGED:
        return packaged_path(PACKAGED[text])
    path = Path(text).expanduser()
    if not text or path.exists() or not isinstance(path_or_repo, str):
        return path
    if text.startswith((".", "~", os.sep)):
        return path
    if named := parse_hub_file(text):
        return _fetch(named[0], revision, named[1])
    return _fetch(text, revision) if _HUB_ID.fullmatch(text) else path


def _fetch(repository: str, revision: str | None, file: str | None = None) -> Path:
    """The folder of a hub repository, or one file of it, from the local cache or downloaded."""
    import mlx_lm.utils
    from huggingface_hub import errors

    try:
        if file is not None:
            return fetch_gguf(repository, file, revision)
        # mlx-lm's own: where users have set it up for another hub, it asks that one.
        folder = Path(
            mlx_lm.utils.snapshot_download(
                repository, revision=revision, allow_patterns=list(_HUB_FILES)
            )
        )
        if not (folder / "config.json").exists() and "gguf" in repository.lower():
            raise ModelLoadError(
                f"the hub's {repository} has no config.json; of a repository of GGUF files name "
                f"one, or its kind: {repository}:Q4_K_M"
            )
        return folder
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ModelLoadError(
            "it is not in the local cache and the hub cannot be reached (no network?); "
            "give the folder of a downloaded model instead"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelLoadError(f"the hub's {repository} has no file {file}") from error


def is_gguf(place: Path) -> bool:
    """Whether a file is a model in llama.cpp's format, by its name or its first bytes."""
    if not place.is_file():
        return False
    if place.suffix == ".gguf":
        return True
    with place.open("rb") as file:
        return file.read(4) == b"GGUF"


def shown(path_or_repo: str | os.PathLike[str]) -> str:
    """The name as the user wrote it (``Path`` would drop the ``./`` that says it is a folder)."""
    return os.fspath(path_or_repo) or "''"
