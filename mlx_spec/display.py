"""How results and statistics show themselves: HTML in a notebook, tables on a terminal, lines.

A record says what there is to say as a ``Summary`` and inherits ``Displayable`` for the rest. All
text is escaped: a completion may hold any HTML. Imports nothing of ours; rich only to be shown by
rich.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from html import escape
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

Summary: TypeAlias = list[tuple[str, str]]
"""(label, text), one below the other."""

MOST_ROWS = 50
MOST_CHARACTERS = 300
# A notebook gives text boxes a ground of their own and breaks words anywhere; neither here.
_PRE = (
    "white-space:pre-wrap;word-break:normal;overflow-wrap:break-word;text-align:left;"
    "max-height:30em;overflow:auto;margin:0;padding:0;border:0;background:none;color:inherit;"
    "font-family:monospace"
)
_CELL = "text-align:left;vertical-align:top"


class Displayable:
    """Shows its ``summary``; a record with more to show extends these methods."""

    @property
    def summary(self) -> Summary:
        """What there is to say: (label, text)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return lines(self.summary)

    def __rich__(self) -> RenderableType:
        return rich_table(self.summary)

    def _repr_html_(self) -> str:
        return html_table(self.summary)


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def shorten(text: str, most: int = MOST_CHARACTERS) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most]}..."


def lines(summary: Summary) -> str:
    """One line a label."""
    return "\n".join(f"{label}: {text}" for label, text in summary)


# --- HTML ---


def html_table(summary: Summary) -> str:
    """Labels and texts below each other."""
    rows = "".join(
        f'<tr><td style="{_CELL}">{escape(label)}</td><td style="{_CELL}">{escape(text)}</td></tr>'
        for label, text in summary
    )
    return f"<div><table>{rows}</table></div>"


def html_rows(columns: Seq[str], rows: Seq[Seq[str]], boxed: Mapping[str, str]) -> str:
    """The first of many rows; ``boxed`` columns hold texts of several lines, in such elements."""
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in columns)
    body = []
    for row in rows[:MOST_ROWS]:
        cells = [
            html_text(text, boxed[name]) if name in boxed else escape(text)
            for name, text in zip(columns, row, strict=True)
        ]
        marked = [f'<td style="{_CELL}">{cell}</td>' for cell in cells]
        body.append(f"<tr>{''.join(marked)}</tr>")
    rest = f"<div>{_more(rows)}</div>" if _more(rows) else ""
    return f"<div><table><tr>{head}</tr>{''.join(body)}</table>{rest}</div>"


def html_text(text: str, element: str = "pre") -> str:
    """A text as it is, its line breaks kept."""
    return f'<{element} style="{_PRE}">{escape(text)}</{element}>'


def _more(rows: Seq[object]) -> str:
    left = len(rows) - MOST_ROWS
    return f"and {left:,} more" if left > 0 else ""


# --- terminals ---


def rich_table(summary: Summary) -> Table:
    """Labels and texts below each other, for ``rich.print``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: it may hold brackets.
    table = Table(box=box.SIMPLE, show_header=False)
    for label, text in summary:
        table.add_row(Text(label, style="bold"), Text(text, overflow="fold"))
    return table


def rich_text(text: str, summary: Summary) -> Group:
    """A text, then its figures."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(text), rich_table(summary))


def rich_rows(columns: Seq[str], rows: Seq[Seq[str]], summary: Summary) -> Group:
    """The first of many rows, then the figures over all."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE)
    for row in rows[:MOST_ROWS]:
        table.add_row(*map(Text, row))
    table.caption = _more(rows) or None
    return Group(table, rich_table(summary))
