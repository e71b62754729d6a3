"""The models that lie on this machine, each looked at, and which of them can draft for which.

No weights are read: configs, headers and tokenizers only, which takes about a second a model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_spec.cache.layout import caches_in_words
from mlx_spec.errors import MlxSpecError
from mlx_spec.model.catalog import EMBEDDED, FoundModel, find_files, find_models, searched
from mlx_spec.model.folders_here import FoldersHere
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.inspection import Looked, ModelInspection, inspection_of, look
from mlx_spec.model.packaged import PACKAGED
from mlx_spec.model.pairing import check_pair

# For all models together, unless everything is asked for.
SECONDS = 60.0
# A draft as large as half its target gains nothing.
MOST_OF_TARGET = 0.5


@dataclass(frozen=True)
class DraftFit:
    """A model that can draft for another.

    Attributes:
        name: of the draft.
        share: the part of the target's tokens that it can guess, 0 to 1.
    """

    name: str
    share: float


@dataclass(frozen=True)
class ModelAtHand:
    """A model that lies here.

    Attributes:
        name: what to give to ``load`` or ``--model``.
        place: where: embedded, packaged, hub, folder or file.
        size: bytes on disk.
        path: its folder or file.
        found: what it is; None where it cannot be loaded.
        caches: what its layers keep, in words.
        drafts: which others can draft for it, the smallest first.
        problem: why it cannot be loaded; empty where it can.
    """

    name: str
    place: str
    size: int
    path: Path
    found: ModelInspection | None = None
    caches: str = ""
    drafts: tuple[DraftFit, ...] = field(default=())
    problem: str = ""


@dataclass(frozen=True)
class AtHand:
    """What was found.

    Attributes:
        models: those that were looked at.
        left_out: names of those that there was no time for.
        searched: where, in words, and what was left out there.
    """

    models: list[ModelAtHand]
    left_out: list[str]
    searched: list[str]


def models_at_hand(
    watch: Callable[[str], None] = lambda name: None, *, everything: bool = False
) -> AtHand:
    """Those that there is time for.

    Args:
        watch: hears the name of each before it is looked at.
        everything: all of them, however long it takes.
    """
    here = FoldersHere(everything)
    found, looked = [*find_models(here), *find_files(here)], list[tuple[ModelAtHand, Any]]()
    until = time.monotonic() + (math.inf if everything else SECONDS)
    for model in found:
        if time.monotonic() > until:
            break
        watch(model.name)
        looked.append(_look(model))
    models = [
        one if own is None else replace(one, drafts=tuple(_drafts(one, own, looked)))
        for one, own in looked
    ]
    return AtHand(models, [one.name for one in found[len(looked) :]], searched(here))


def _look(model: FoundModel) -> tuple[ModelAtHand, Looked | None]:
    known = ModelAtHand(model.name, _place(model), model.size, model.path)
    try:
        own = look(model.name)
        found = inspection_of(model.name, own)
        caches = "" if own.tokenizer is None else caches_in_words(own.model)
    except MlxSpecError as error:
        words = " ".join(str(error).split()).removeprefix(f"[load] {model.name}: ")
        return replace(known, problem=words), None
    return replace(known, found=found, caches=caches), own


def _place(model: FoundModel) -> str:
    if model.name in EMBEDDED:
        return "embedded"
    if model.name in PACKAGED:
        return "packaged"
    if not model.name.startswith("."):
        return "hub"
    return "file" if model.model_type == "gguf" else "folder"


def _drafts(
    target: ModelAtHand, own: Looked, others: list[tuple[ModelAtHand, Looked | None]]
) -> Iterator[DraftFit]:
    """Smaller models with enough of its tokens, and heads that were made for it."""
    if own.tokenizer is None or target.found is None or target.found.verdict == "refused":
        return
    for other, draft in sorted(others, key=lambda pair: pair[0].size):
        if draft is None or other is target or other.found is None:
            continue
        head = draft.tokenizer is None
        if not head and other.size > MOST_OF_TARGET * target.size:
            continue
        try:
            if head:
                draft.model.check(TargetParts(own.model))
            pairing = check_pair(own.tokenizer, draft.tokenizer)
        except MlxSpecError:
            continue
        if not pairing.through_text:
            yield DraftFit(other.name, pairing.share)
