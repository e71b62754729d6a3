"""``mlx-spec doctor``: what this machine is, which BLAS and versions are in use, which models
are at hand; with a model, what to expect of it. It reads no weights and changes nothing but what
is known of kernels (``--kernels --model``)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_spec.cli.doctor_kernels import broken_kernels, show_kernels
from mlx_spec.display import rich_table

if TYPE_CHECKING:
    from mlx_spec.model.catalog import FoundModel
    from mlx_spec.model.inspection import ModelInspection
    from mlx_spec.model.pairing import Pairing
    from mlx_spec.platform import Machine

VERDICTS = {
    "exact": "exact: drafts change no token where the device rounds alike",
    "near-ties": "near-ties: drafts may swap tokens that are as good as equally likely",
    "refused": "refused: this engine cannot run it",
}


def doctor(
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Look at this model instead.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option("--draft-model", metavar="NAME", help="And at this draft for it.")
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Which Metal kernels run here, and why; with --model those of its shapes, tried "
            "now if they are not known (at most two seconds).",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Show machine, backend, memory, BLAS, versions and the models found; or what to expect of
    one model. Exit code 1 if it is refused."""
    if kernels:
        show_kernels([name for name in (model, draft_model) if name is not None], as_json)
        return
    if model is not None or draft_model is not None:
        _show_models(model or "demo", draft_model, as_json)
        return
    from mlx_spec.model.catalog import find_files, find_models, searched
    from mlx_spec.platform import describe

    machine, places = describe(), searched()
    models = [*find_models(), *find_files()]
    if as_json:
        record = asdict(machine) | {"models": [_record(m) for m in models], "searched": places}
        record["kernels_off"] = broken_kernels()
        print(json.dumps(record, indent=2))
    else:
        _print_tables(machine, models, places)


def _show_models(name: str, draft_name: str | None, as_json: bool) -> None:
    from mlx_spec.model.inspection import inspect_model, inspect_pair

    pairing = None
    if draft_name is None:
        found = [inspect_model(name)]
    else:
        *found, pairing = inspect_pair(name, draft_name)
    if as_json:
        record: dict[str, Any] = {"models": [asdict(each) for each in found]}
        if pairing is not None:
            record["pairing"] = _pair_record(pairing)
        print(json.dumps(record, indent=2))
    else:
        _print_models(found, pairing)
    if any(each.verdict == "refused" for each in found):
        raise typer.Exit(1)


def _record(model: FoundModel) -> dict[str, Any]:
    return asdict(model) | {"path": str(model.path)}


def timed_models() -> str:
    """Of how many models the costs of passes are known here, and where they are kept."""
    from mlx_spec.model.cost_files import VARIABLE, costs_folder, measuring

    if not measuring():
        return f"none ({VARIABLE}=off)"
    folder = costs_folder()
    count = len(list(folder.glob("*.json"))) if folder.is_dir() else 0
    return f"{count} models and heads ({VARIABLE}={folder})"


def _rows(machine: Machine) -> list[tuple[str, str]]:
    """The lines of the first table."""
    blas = machine.blas
    rows = [
        ("machine", f"{machine.machine}, {machine.system}"),
        ("processors", f"{machine.cpu_count}"),
        ("memory", f"{machine.memory / 1e9:.1f} GB"),
        ("backend", f"{machine.backend} ({machine.device})"),
        ("BLAS", f"{blas.path} ({blas.reason})" if blas.path else blas.reason),
    ]
    if machine.advice is not None:
        rows.append(("  faster", machine.advice))
    rows += [("  maybe", advice) for advice in machine.settings]
    rows += [("  kernel off", words) for words in broken_kernels() or ()]
    rows += [("passes timed", timed_models()), ("python", machine.python)]
    return rows + [(name, version or "missing") for name, version in machine.versions.items()]


def _model_rows(found: ModelInspection) -> list[tuple[str, str]]:
    """The lines of a model's table."""
    kind = f"{found.bits}-bit" if found.bits is not None else "plain"
    chat = f"{found.vocabulary:,} tokens, {'a' if found.chat else 'no'} chat template"
    rows = [
        ("model", found.name),
        ("type", f"{found.model_type}, {found.layers} layers"),
        ("weights", f"{kind}, {found.bytes / 1e6:,.1f} MB in memory here"),
        ("context", f"{found.context:,} tokens" if found.context else "not in its config"),
        ("tokenizer", chat if found.vocabulary else "its target's"),
        ("verdict", VERDICTS[found.verdict]),
    ]
    if found.reason:
        rows.append(("  why", found.reason))
    if found.unread:
        rows.append(("  but", found.unread))
    if found.passes:
        rows.append(("  slow", found.passes))
    return rows + ([("  faster", found.advice)] if found.advice is not None else [])


def _pair_record(pairing: Pairing) -> dict[str, Any]:
    """What a pair shares, without the table of ids."""
    return asdict(replace(pairing, to_draft=None)) | {"share": pairing.share}


def _print_models(models: list[ModelInspection], pairing: Pairing | None) -> None:
    from rich.console import Console

    console = Console()
    for found in models:
        console.print(rich_table(_model_rows(found)))
    if pairing is not None:
        console.print(rich_table([("pair", str(pairing))]))


def _print_tables(machine: Machine, models: list[FoundModel], places: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mlx_spec.model.packaged import PACKAGED

    found = Table(box=box.SIMPLE, title="models found", title_justify="left")
    for column in ("name", "type", "weights"):
        found.add_column(column, overflow="fold")
    for model in models:
        found.add_row(Text(model.name), Text(model.model_type), f"{model.size / 1e6:,.1f} MB")
    console = Console()
    console.print(rich_table(_rows(machine)))
    console.print(found)
    console.print(Text(f"  looked in: the package, {', '.join(places)}"))
    here = {model.name for model in models}
    for name, one in PACKAGED.items():
        if name in here:
            continue
        about = f"{one.title}, {one.size / 1e6:.0f} MB, {one.licence}"
        console.print(Text(f"  fetched on first use: {name} ({about})"))
