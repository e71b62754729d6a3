"""``mlx-spec models``: what is at hand, and which of it can draft for which."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_spec.cli.notes import status
from mlx_spec.cli.terminal import ERASE

if TYPE_CHECKING:
    from mlx_spec.model.at_hand import DraftFit, ModelAtHand

_COLUMNS = ("model", "type", "on disk", "context", "chat", "layers keep")


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Look at all, however many there are and long it takes.")
    ] = False,
) -> None:
    """List the models on this machine: size, context, caches, and which pairs fit.

    Embedded ones, those that were fetched, the Hugging Face cache, folders and GGUF files here.
    `mlx-spec doctor --model NAME` says more of one.
    """
    with status("looking for models", as_json):
        from mlx_spec.model.at_hand import models_at_hand
        from mlx_spec.model.packaged import PACKAGED
    found = models_at_hand(_watching(as_json), everything=everything)
    _erase(as_json)
    here = {one.name for one in found.models}
    fetched = {name: one for name, one in PACKAGED.items() if name not in here}
    if as_json:
        record = {
            "models": [_record(one) for one in found.models],
            "left_out": found.left_out,
            "to_fetch": [{"name": n, "title": o.title, "size": o.size} for n, o in fetched.items()],
            "searched": found.searched,
        }
        print(json.dumps(record, indent=2))
        return
    _print(found.models)
    if found.left_out:
        names = ", ".join(found.left_out[:3]) + (", ..." if len(found.left_out) > 3 else "")
        print(f"  not looked at, for time (--all does): {len(found.left_out)} models: {names}")
    for name, one in fetched.items():
        print(f"  fetched on first use: {name} ({one.title}, {one.size / 1e6:.0f} MB)")
    print(f"  looked in: the package, {', '.join(found.searched)}")


def _watching(quiet: bool) -> Any:
    """Says on a line that goes away which model is looked at."""
    if not _shows(quiet):
        return lambda name: None
    return lambda name: print(f"{ERASE}looking at {name} ...", end="", file=sys.stderr, flush=True)


def _erase(quiet: bool) -> None:
    if _shows(quiet):
        print(ERASE, end="", file=sys.stderr, flush=True)


def _shows(quiet: bool) -> bool:
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def _record(one: ModelAtHand) -> dict[str, Any]:
    return asdict(one) | {"path": str(one.path)}


def _print(found: list[ModelAtHand]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for column in _COLUMNS:
        right = column in ("on disk", "context")
        table.add_column(
            column,
            overflow="fold",
            justify="right" if right else "left",
            no_wrap=column in ("model", "on disk", "context"),  # what is copied, and figures
        )
    for one in found:
        table.add_row(*map(Text, _row(one)))
    Console().print(table)
    # Not a column: names are copied, and two of the hub's fill a terminal.
    for one in found:
        if one.drafts:
            print(f"  drafts for {one.name}: {', '.join(map(_draft, one.drafts))}")


def _row(one: ModelAtHand) -> tuple[str, ...]:
    """The cells of a model's row."""
    size, own = f"{one.size / 1e6:,.0f} MB", one.found
    if own is None:
        return one.name, "cannot be loaded", size, "", "", one.problem
    bits = f", {own.bits}-bit" if own.bits else ""
    kind = f"{own.model_type}{bits}"
    if own.verdict == "refused":
        kind += " (refused)"
    context = f"{own.context:,}" if own.context else ""
    return one.name, kind, size, context, "yes" if own.chat else "", one.caches


def _draft(fit: DraftFit) -> str:
    return fit.name if fit.share == 1 else f"{fit.name} ({fit.share:.1%} of its tokens)"
