"""Which models are at hand: the embedded ones and those in the local Hugging Face cache.

It reads folder listings and ``config.json`` files only, never weights, and asks no network.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_spec.model.folders_here import FoldersHere
from mlx_spec.model.packaged import PACKAGED, cache_folder

_PART = re.compile(r"(\d{5})-of-\d{5}")
_DEMO_MODELS = Path(__file__).parent.parent / "demo_models"
EMBEDDED = {
    "demo": _DEMO_MODELS / "target",
    "demo-draft": _DEMO_MODELS / "draft",
    "smollm2-draft": _DEMO_MODELS / "smollm2_draft",
}


@dataclass(frozen=True)
class FoundModel:
    """A model that ``load`` can probably load.

    Attributes:
        name: what to give to ``load`` or ``--model``.
        model_type: the architecture that its config names.
        size: bytes of its weights on disk.
        path: its folder.
    """

    name: str
    model_type: str
    size: int
    path: Path


def embedded_path(name: str | os.PathLike[str]) -> Path | None:
    """The folder of an embedded model, or None if the name is not one of theirs."""
    return EMBEDDED.get(name) if isinstance(name, str) else None


def find_models(here: FoldersHere | None = None) -> list[FoundModel]:
    """The embedded ones, folders in the working directory, the local Hugging Face cache."""
    embedded = [_inspect(name, path) for name, path in EMBEDDED.items()]
    cached = sorted(_cached(), key=lambda model: model.name.lower())
    own = [_inspect(_name(path), path) for path in (here or FoldersHere()).folders]
    return [model for model in [*embedded, *own, *cached] if model is not None]


def find_files(here: FoldersHere | None = None) -> list[FoundModel]:
    """GGUF files: packaged ones that were fetched, in the working directory, in the hub's cache.

    Of a model in several files the first; their type is not looked up.
    """
    packaged = [
        FoundModel(name, "gguf", path.stat().st_size, path)
        for name, one in PACKAGED.items()
        if (path := cache_folder() / one.file).is_file()
    ]
    found = [(_name(path), path) for path in (here or FoldersHere()).files]
    for name, folder in _snapshots():
        found += [(f"{name}/{path.relative_to(folder)}", path) for path in folder.rglob("*.gguf")]
    return [*packaged, *filter(None, (_file(name, path) for name, path in found))]


def _file(name: str, path: Path) -> FoundModel | None:
    """A GGUF file that is a model, or the first part of one."""
    part = _PART.search(path.name)
    if (part and part[1] != "00001") or "mmproj" in path.name.lower():
        return None
    parts = path.parent.glob(_PART.sub("*", path.name)) if part else [path]
    try:
        return FoundModel(name, "gguf", sum(one.stat().st_size for one in parts), path)
    except OSError:
        return None


def nearest(name: str) -> str | None:
    """The model at hand that somebody means who wrote another name; None where none is like it.

    The owner of a hub's repository may be left out, and letters may be of any case.
    """
    meant = {one.title.partition(",")[0].lower(): own for own, one in PACKAGED.items()}
    here = FoldersHere()
    at_hand = [*find_models(here), *find_files(here)]
    for known in [*EMBEDDED, *PACKAGED, *(one.name for one in at_hand)]:
        meant[known.rsplit("/", 1)[-1].lower()] = meant[known.lower()] = known
    close = difflib.get_close_matches(name.rstrip("/").lower(), meant, 1, 0.7)
    return meant[close[0]] if close else None


def searched(here: FoldersHere | None = None) -> list[str]:
    """Where :func:`find_models` looks, in words, and what is not there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    missing = "" if cache.is_dir() else " (not there)"
    left = f" ({here.left_out:,} of them left out)" if here and here.left_out else ""
    return [f"folders in {Path.cwd()}{left}", f"the Hugging Face cache {cache}{missing}"]


def _name(path: Path) -> str:
    return f".{os.sep}{path}"


def _cached() -> Iterator[FoundModel]:
    """Models of the hub's cache."""
    for name, folder in _snapshots():
        model = _inspect(name, folder)
        if model is not None:
            yield model


def _snapshots() -> Iterator[tuple[str, Path]]:
    """Model repositories of the hub's cache: the revision that ``main`` points at if there is
    one."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return
    for repository in repositories:
        if repository.repo_type != "model" or not repository.revisions:
            continue
        newest = max(
            repository.revisions,
            key=lambda revision: ("main" in revision.refs, revision.last_modified),
        )
        yield repository.repo_id, Path(newest.snapshot_path)


def _inspect(name: str, folder: Path) -> FoundModel | None:
    """Describe a model's folder, or None if it does not look loadable."""
    weights = list(folder.glob("model*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in weights)
    except (OSError, ValueError):
        return None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not weights or not isinstance(model_type, str) or not _known(model_type):
        return None
    return FoundModel(name, model_type, size, folder)


def _known(model_type: str) -> bool:
    """Whether mlx-lm has this architecture, or we have."""
    from mlx_lm.utils import MODEL_REMAPPING

    from mlx_spec.model.heads.head import MODEL_TYPE

    if model_type == MODEL_TYPE:  # a draft of our own
        return True
    module = f"mlx_lm.models.{MODEL_REMAPPING.get(model_type, model_type)}"
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
