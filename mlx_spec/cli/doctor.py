"""``mlx-spec doctor``: what this machine is, which BLAS and versions are in use, which models
are at hand. It changes nothing and asks no network."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlx_spec.model.catalog import FoundModel
    from mlx_spec.platform import Machine


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Show machine, backend, memory, BLAS, versions and the models found."""
    from mlx_spec.model.catalog import find_models
    from mlx_spec.platform import describe

    machine, models = describe(), find_models()
    if as_json:
        record = asdict(machine) | {"models": [_record(model) for model in models]}
        print(json.dumps(record, indent=2))
    else:
        _print_tables(machine, models)


def _record(model: FoundModel) -> dict[str, Any]:
    return asdict(model) | {"path": str(model.path)}


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
    rows.append(("python", machine.python))
    return rows + [(name, version or "missing") for name, version in machine.versions.items()]


def _print_tables(machine: Machine, models: list[FoundModel]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: a path may hold brackets.
    facts = Table(box=box.SIMPLE, show_header=False)
    for name, value in _rows(machine):
        facts.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    found = Table(box=box.SIMPLE, title="models found", title_justify="left")
    for column in ("name", "type", "weights"):
        found.add_column(column, overflow="fold")
    for model in models:
        found.add_row(Text(model.name), Text(model.model_type), f"{model.size / 1e6:,.1f} MB")
    console = Console()
    console.print(facts)
    console.print(found)
