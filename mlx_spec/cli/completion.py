"""What a shell completes after an option: names of models at hand, of drafters, of stages.

A key press waits for it, so nothing heavy is imported: folders are listed, and names of folders
are taken for models.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HUB = "models--"
_LINES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
Complete = Callable[..., list[str]]


def model_names(incomplete: str) -> list[str]:
    """Models that begin so; of a path, folders and GGUF files."""
    if incomplete.startswith((".", "~", os.sep)):
        return sorted(_paths(incomplete))
    return [name for name in _names() if name.startswith(incomplete)]


def draft_kinds(incomplete: str) -> list[str]:
    """Drafters, also behind others that are joined with ``+``."""
    from mlx_spec.config.speculation import DRAFTERS

    before, plus, begun = incomplete.rpartition("+")
    taken = before.split("+")
    names = (name for name in DRAFTERS if name.startswith(begun) and name not in taken)
    return [f"{before}{plus}{name}" for name in names]


def stage_names(incomplete: str) -> list[str]:
    """The stages of the config that is named in the line, by number and kind."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        # The line as shells hand it over: with an option whose value is being typed, nothing of it
        # is parsed yet.
        line = shlex.split(next(filter(None, map(os.environ.get, _LINES)), ""))
        config = next(word for word in line if word.endswith(".toml"))
        with open(os.path.expanduser(config), "rb") as file:
            stages = tomllib.load(file)["stage"]
        kinds = [str(stage["kind"]) for stage in stages]
    except (StopIteration, KeyError, TypeError, OSError, ValueError):
        return []
    # What a class of the user's calls itself is not known without running it.
    names = [f"{n}-{kind}" if ":" not in kind else str(n) for n, kind in enumerate(kinds, start=1)]
    return [name for name in names if name.startswith(incomplete)]


def one_of(choices: tuple[str, ...]) -> Complete:
    """Of an option with so many values."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _names() -> list[str]:
    from mlx_spec.model.catalog import EMBEDDED
    from mlx_spec.model.packaged import PACKAGED

    return [*sorted(_in_hub_cache()), *PACKAGED, *EMBEDDED]


def _in_hub_cache() -> Iterator[str]:
    """Repositories in the hub's cache, wherever the hub's own variables say it is."""
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    try:
        for folder in os.listdir(cache):
            if folder.startswith(_HUB):
                yield folder.removeprefix(_HUB).replace("--", "/")
    except OSError:
        return


def _paths(begun: str) -> Iterator[str]:
    head, tail = os.path.split(begun)
    try:
        found = list(os.scandir(os.path.expanduser(head) or "."))
    except OSError:
        return
    for entry in found:
        if entry.name.startswith(tail) and (entry.is_dir() or entry.name.endswith(".gguf")):
            yield os.path.join(head, entry.name) + (os.sep if entry.is_dir() else "")


OF_OPTIONS: dict[str, Any] = {
    "model": model_names,
    "draft_model": model_names,
    "draft": draft_kinds,
}
