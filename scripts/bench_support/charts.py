"""Charts of the page, as SVG: bars in groups, or lines, made of the cells of printed tables."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mlx_spec.metrics.plots import LIGHT


@dataclass(frozen=True)
class Picture:
    """A chart.

    Attributes:
        name: of its file.
        title, y: what it shows, and in which unit.
        labels: of the groups, or places on the x axis.
        series: values by name, one for each label; None where there is none.
        base: a line to compare with, e.g. 1 of ratios.
        lines: joined by lines; else bars.
    """

    name: str
    title: str
    y: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    base: float | None = None
    lines: bool = False

    def write(self, folder: Path) -> Path:
        """The file, text kept as text, the same bytes for the same figures."""
        words = {"svg.fonttype": "none", "svg.hashsalt": self.name, "font.family": "sans-serif"}
        with matplotlib.rc_context(words):
            out = io.StringIO()
            self._draw().savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        path = folder / f"{self.name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (line.rstrip() for line in out.getvalue().splitlines())
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _draw(self) -> Figure:
        figure = Figure(figsize=(7.2, 3.4), layout="constrained", facecolor=LIGHT.paper)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=LIGHT.faint, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_title(self.title, loc="left", color=LIGHT.ink, fontsize=10)
        axes.set_ylabel(self.y, color=LIGHT.ink)
        width = 0.8 / len(self.series)
        for number, (name, values) in enumerate(self.series.items()):
            there = [(x, v) for x, v in enumerate(values) if v is not None]
            colour = LIGHT.runs[number % len(LIGHT.runs)]
            places = [x if self.lines else x - 0.4 + (number + 0.5) * width for x, _ in there]
            heights = [v for _, v in there]
            if self.lines:
                axes.plot(places, heights, color=colour, marker="o", label=name)
            else:
                axes.bar(places, heights, 0.92 * width, color=colour, label=name)
        axes.set_xticks(range(len(self.labels)), self.labels, fontsize=8)
        if self.base is not None:
            axes.axhline(self.base, color=LIGHT.ink, linewidth=1, linestyle="--")
        if len(self.series) > 1:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return figure


def number(cell: str) -> float | None:
    """The first number of a cell, as ``19.2`` of ``19.2 (18.4-20.1)`` and 1.14 of ``**1.14**``."""
    found = re.search(r"[-+]?\d[\d,]*\.?\d*", cell)
    return float(found.group().replace(",", "")) if found else None
