"""``mlx-spec doctor --kernels``: which Metal kernels run on this machine, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metal_kernels.trials.judge import KernelVerdict

COLUMNS = ("operation", "shape", "dtype", "rows x new", "right?", "ours us", "mlx us", "choice")


def show_kernels(models: list[str], as_json: bool) -> None:
    """Show what is kept of this machine; of models that are named, what was found of their shapes.

    Those are tried now, as loading the models would, where they are not known yet.
    """
    import metal_kernels
    from mlx_spec.model.kernel_choice import Book, decide, path_of
    from mlx_spec.model.loader import load

    if not metal_kernels.available():
        _say_none(as_json)
        return
    book = Book.open()
    verdicts = list(book.verdicts.values())
    if models:
        loaded = [load(name, lazy=True, kernels="reference")[0] for name in models]
        verdicts = list(dict.fromkeys(known for model in loaded for known in decide(model)))
    rows = [row for known in verdicts for row in _rows(known)]
    path = str(path_of(book.machine))
    if as_json:
        print(json.dumps({"machine": book.machine, "file": path, "kernels": rows}, indent=2))
        return
    _print(book.machine, path, rows)


def broken_kernels() -> list[str] | None:
    """What of this machine's kernels was found to be wrong or to fail; None where no Metal is."""
    import metal_kernels

    if not metal_kernels.available():
        return None
    from mlx_spec.model.kernel_choice import Book, told

    return [told(known) for known in Book.open().verdicts.values() if known.broken]


def _say_none(as_json: bool) -> None:
    words = "no Metal here: every model runs MLX's own operations (--kernels reference)"
    print(
        json.dumps({"machine": None, "file": None, "kernels": [], "why": words}, indent=2)
        if as_json
        else words
    )


def _rows(known: KernelVerdict) -> Iterator[dict[str, Any]]:
    """A row for each point that was tried, and one for what is off or left."""
    site = {"operation": known.site.operation, "shape": str(known.site), "dtype": known.site.dtype}
    for point, times in known.times:
        wins = point in known.won
        yield site | {
            "rows x new": str(point),
            "right?": "yes",
            "ours us": round(times.ours * 1e6, 1),
            "mlx us": round(times.theirs * 1e6, 1),
            "choice": "ours" if wins else "mlx",
            "why": f"{times.ratio:.2f} of MLX's time",
        }
    if known.broken or known.left:
        points = ", ".join(map(str, known.left))
        right = {"wrong": "no", "unfinished": "not tried"}.get(known.state, known.state)
        why = known.why or f"left for the next load: {points}"
        none = {"ours us": None, "mlx us": None}
        yield (
            site
            | {"rows x new": points or "all", "right?": right}
            | none
            | {
                "choice": "mlx",
                "why": why,
            }
        )


def _print(machine: str, path: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, title=f"Metal kernels on {machine}", title_justify="left")
    for column in (*COLUMNS, "why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = [row[column] for column in (*COLUMNS, "why")]
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
    console = Console()
    console.print(table)
    if not rows:
        console.print(Text("  nothing was tried yet: load a model, or name one with --model"))
    console.print(Text(f"  kept in {path}; without it all is tried anew"))
    console.print(Text("  ours: taken by passes whose neighbouring rows of this table all pay"))
