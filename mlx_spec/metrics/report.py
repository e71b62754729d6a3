"""From a run's figures to a table on the terminal and a folder of charts with one HTML page.

The figures are ``summary``'s, the words ``terms``', the charts ``plots``'; charts need the extra
``report`` (matplotlib), the table does not.
"""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_spec.errors import MlxSpecError
from mlx_spec.metrics.log_reader import Problem
from mlx_spec.metrics.summary import NONE, RunSummary
from mlx_spec.metrics.terms import GROUPS, TERMS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Most runs side by side on a terminal, and the columns that its table's lines and edges take.
_MOST_RUNS = 4
_PADDING = 2


def print_report(console: Console, summaries: list[RunSummary], problems: list[Problem]) -> None:
    """Tables on a terminal: the latest runs side by side, their stages, the terms, the problems."""
    from rich.text import Text

    shown = _fitting(summaries, console.width)
    if shown:
        console.print(_heads(shown), _figures(shown), "", _terms(shown))
    if len(shown) < len(summaries):
        older = len(summaries) - len(shown)
        console.print(
            f"{older} older run{'s are' if older > 1 else ' is'} not shown; --out has all"
        )
    for summary in shown:
        if summary.stages:
            console.print(_stages(summary))
    for problem in problems:
        console.print(Text(f"left out: {problem}"), soft_wrap=True)


def _fitting(summaries: list[RunSummary], width: int) -> list[RunSummary]:
    """The latest runs whose figures stand beside each other in ``width`` columns; one at least."""
    left = width - max(len(label) for label in TERMS) - 2 * _PADDING
    count = 0
    for summary in reversed(summaries[-_MOST_RUNS:]):
        left -= max(len(text) for text in summary.figures.values()) + _PADDING
        if left < 0 and count:
            break
        count += 1
    return summaries[len(summaries) - count :]


def _heads(shown: list[RunSummary]) -> Table:
    """What the columns are."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for summary in shown:
        cells = (f"run {summary.number}", summary.started, summary.models, summary.machine)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _figures(shown: list[RunSummary]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    table.add_column("")
    for summary in shown:
        table.add_column(f"run {summary.number}", justify="right", overflow="fold")
    for title, labels in GROUPS.items():
        if table.row_count:
            table.add_row()
        table.add_row(Text(title, "bold"))
        for label in labels:
            if any(label in s.figures for s in shown):
                table.add_row(label, *(Text(s.figures.get(label, NONE)) for s in shown))
    return table


def _terms(shown: list[RunSummary]) -> Table:
    """The words for what is shown."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for term, words in TERMS.items():
        if " / " in term or any(term in s.figures for s in shown):
            table.add_row(Text(term, "dim"), Text(words, "dim"))
    return table


def _stages(summary: RunSummary) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = ("stage", "items", "items/s", "errors", "seconds")
    title = Text(f"stages of run {summary.number}")
    table = Table(*columns, box=box.SIMPLE, title=title, title_justify="left")
    for row in summary.stages:
        table.add_row(*(Text(cell) for cell in row))
    return table


def check_extra() -> None:
    """Refuse early what needs the extra.

    Raises:
        MlxSpecError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MlxSpecError("[report] charts need matplotlib: pip install 'mlx-spec[report]'")


def write_report(folder: Path, summaries: list[RunSummary], problems: list[Problem]) -> Path:
    """Charts as PNG files and a page ``report.html`` that holds them all; returns the page.

    Raises:
        MlxSpecError: the extra is not installed, or the folder cannot be written.
    """
    check_extra()
    from mlx_spec.metrics.plots import DARK, draw

    charts = draw(summaries)
    page = _page(summaries, problems, charts, draw(summaries, DARK))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in charts.items():
            (folder / f"{name}.png").write_bytes(png)
        target = folder / "report.html"
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise MlxSpecError(f"[report] --out {folder}: {error.strerror}") from error
    return target


def _page(
    summaries: list[RunSummary],
    problems: list[Problem],
    light: dict[str, bytes],
    dark: dict[str, bytes],
) -> str:
    import jinja2

    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    known = {label for summary in summaries for label in summary.figures}
    return template.render(
        summaries=summaries,
        groups={
            title: [label for label in labels if label in known] for title, labels in GROUPS.items()
        },
        terms={term: words for term, words in TERMS.items() if " / " in term or term in known},
        none=NONE,
        problems=problems,
        charts={
            name: {"light": _inline(png), "dark": _inline(dark[name])}
            for name, png in light.items()
        },
    )


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
