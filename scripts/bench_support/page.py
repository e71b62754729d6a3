"""``docs/benchmarks.md`` as it is made of the records in ``docs/results``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_support.charts import Picture, number
from bench_support.results import Record, Table

HEAD = """\
# Benchmarks

Made by `python scripts/make_benchmarks.py` from the records in `docs/results`, which
`scripts/bench_*.py --save NAME` write: do not edit this page. `make_benchmarks.py --commands` says
how each is measured again.

Every comparison is of methods that ran in turn, in one process, on one machine: a median of ratios
or differences within a round; `(min-max)` says how noisy it was. No Mac was at hand, and a GPU
only for minutes (docs/LOG.md): what is here ran on MLX's CPU build. On Metal the cost of a pass is
another staircase, and these ratios will differ.
"""
Draw = Callable[[Sequence[Record]], list[Picture]]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: its heading.
        about: what is measured, and how to read it; no figures, which would grow old.
        commands: by record, what measures it, after ``python scripts/``.
        draw: makes its charts.
    """

    title: str
    about: str
    commands: dict[str, str]
    draw: Draw | None = None

    def records(self, folder: Path) -> list[Record]:
        """Those that were measured."""
        paths = [folder / f"{name}.json" for name in self.commands]
        return [Record.read(path) for path in paths if path.exists()]


def render(sections: Sequence[Section], folder: Path) -> str:
    """The page; ``folder`` holds the records."""
    parts = [HEAD, _machines([r for one in sections for r in one.records(folder)])]
    for section in sections:
        records = section.records(folder)
        parts.append(f"## {section.title}\n\n{section.about.strip()}\n")
        if section.commands and not records:
            parts.append("Not measured on this engine yet.\n")
        for picture in section.draw(records) if section.draw and records else []:
            parts.append(f"![{picture.title}](results/charts/{picture.name}.svg)\n")
        parts += [_shown(record) for record in records]
    return "\n".join(parts)


def pictures(sections: Sequence[Section], folder: Path) -> list[Picture]:
    """All charts of the page."""
    found: list[Picture] = []
    for section in sections:
        records = section.records(folder)
        if section.draw and records:
            found += section.draw(records)
    return found


def _shown(record: Record) -> str:
    """What was run, and its tables."""
    where = record.machine.get("processor", "")
    parts = [f"`{record.command}` ({record.date}, {record.engine}, {where})\n"]
    if record.note:
        parts.append(f"**{record.note}**\n")
    parts += [f"### {table.title}\n\n{table}\n" for table in record.tables]
    return "\n".join(parts)


def _machines(records: Sequence[Record]) -> str:
    """What all of it ran on: a line for each machine, with the days."""
    days: dict[str, set[str]] = {}
    for record in records:
        words = ", ".join(f"{name} {value}" for name, value in record.machine.items() if value)
        days.setdefault(words, set()).add(record.date)
    lines = [f"- {', '.join(sorted(when))}: {words}" for words, when in days.items()]
    return "Machines, by the days on which they were used:\n\n" + "\n".join(lines) + "\n"


def column(table: Table, place: int) -> list[float | None]:
    """The numbers of a column."""
    return [number(row[place]) for row in table.rows]


def labels(table: Table) -> list[str]:
    """The first column."""
    return [row[0] for row in table.rows]
